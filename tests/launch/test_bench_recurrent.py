"""What the command says; the timing itself is the machine's."""

import json

import pytest

from launch.bench_recurrent import CELLS, main
from research.errors import UserError

SMALL = {"batch_size": 2, "length": 3, "dim": 4, "repeats": 1}


def test_every_cell_is_timed(capsys):
    main(**SMALL, num_layers=2, as_json=True)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows.keys() == CELLS.keys()
    # Input and recurrent kernels and biases: 4, 3 or 1 blocks in each of 2 layers.
    blocks = {"RNN": 1, "LSTM": 4, "GRU": 3}
    for name, (timing,) in rows.items():
        assert timing["name"] == "ours" and timing["median"] > 0
        assert timing["num_params"] == 2 * blocks[name] * (4 * 4 + 4 * 4 + 4 + 4)


def test_ratios_stand_beside_the_peers(capsys, monkeypatch):
    import launch.bench_recurrent as module

    monkeypatch.setattr(module, "find_peer", lambda _: lambda work, name: [peer])
    peer = module.Contender("theirs", lambda: None, 1, 0)
    main(**SMALL, torch=True)
    told = capsys.readouterr().out.splitlines()[1:]
    assert [line.split(":")[0] for line in told] == list(CELLS)
    assert all("theirs" in line and "x ours" in line for line in told)


def test_sizes_have_to_be_sizes():
    with pytest.raises(UserError, match="at least 1"):
        main(length=0)
