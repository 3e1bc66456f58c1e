"""What the command says; the timing itself is the machine's."""

import json

import pytest

from launch import bench_decoding as command
from research.errors import UserError

TINY = {"vocab_size": 50, "decoder_vocab_size": 50, "pad_token_id": 49}
TINY |= {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
TINY |= dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 8)
TINY |= dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2)
SIZES = {"rows": 2, "source_length": 5, "new_tokens": 3, "repeats": 1}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(command, "OPUS", {**command.OPUS, **TINY})


def test_tokens_are_counted_and_compared(capsys, monkeypatch):
    """A peer that only ever says 7, and does so in no time."""

    def generators(work):
        assert work.source.shape == (2, 5) and work.begin == 49
        wrong = command.np.full((2, 3), 7)
        return [command.Generator("sevens", lambda: wrong)]

    monkeypatch.setattr(command, "find_peer", lambda _: generators)
    command.main(**SIZES, torch=True, as_json=True)
    record = json.loads(capsys.readouterr().out)
    ours, theirs = record["timings"]
    assert ours["name"] == "ours" and theirs["name"] == "sevens"
    assert ours["examples_per_second"] == pytest.approx(6 / ours["median"])
    assert record["agreed"]["sevens"] < 1 and record["ratios"]["sevens"] < 1


def test_a_beam_is_told(capsys):
    command.main(**SIZES, beam_size=2)
    told = capsys.readouterr().out
    assert "beam of 2" in told and "tokens/s" in told


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least 1"):
        command.main(rows=0)
    (tmp_path / "config.json").write_text('{"model_type": "gpt9"}')
    with pytest.raises(UserError, match="gpt9"):
        command.main(str(tmp_path), **SIZES)
