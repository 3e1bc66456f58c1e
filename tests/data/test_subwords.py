"""Tokenizers in files: trained here, or in the layouts of public checkpoints."""

import json
import pickle

import pytest

from research.data.generated import english
from research.data.sequences import Tokenize
from research.data.sources import all_missing
from research.data.subwords import HuggingFaceTokenizer, Marian, SentencePiece, Training
from research.data.text import ParallelText
from research.data.tokenizers import Special, Tokenizer
from research.errors import UserError
from tests.data import texts
from tests.data.texts import unicode_texts

LINES = [{"text": english(number)} for number in range(1, 999_999, 3001)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "deep" / "a.model"
    tokenizer = SentencePiece(str(path), Training(LINES, 40))
    assert tokenizer.missing() == [str(path)] and tokenizer.vocab_size == 40
    told = tokenizer.prepare()
    assert told == "40 pieces, trained from this corpus"
    return tokenizer


def test_a_trained_model_brings_its_corpus_back(trained):
    assert isinstance(trained, Tokenizer)
    assert trained.missing() == []
    assert trained.special == Special(pad=0, end=1, unknown=2, begin=3)
    for line in LINES:
        ids = trained.encode(line["text"])
        assert 4 <= min(ids) and max(ids) < 40
        assert trained.decode([3, *ids, 1, 0]) == line["text"]
    assert trained.decode(trained.encode("one q")) == "one  \u2047 "
    with pytest.raises(UserError, match="id 40 is not in a vocabulary of 40"):
        trained.decode([40])


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_is_deterministic(tmp_path, kind):
    files = []
    for name in ("a.model", "b.model"):
        SentencePiece(str(tmp_path / name), Training(LINES, 40, kind=kind)).prepare()
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.model",
        "a.model.json",
        "b.model",
        "b.model.json",
    ]


def test_with_byte_fallback_nothing_is_unknown(tmp_path):
    training = Training(LINES, 300, kind="bpe", byte_fallback=True)
    tokenizer = SentencePiece(str(tmp_path / "a.model"), training)
    tokenizer.prepare()
    for text in unicode_texts(100):
        assert tokenizer.special.unknown not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode("one \u4e2d")) == "one \u4e2d"


def test_a_used_model_pickles_as_its_fields(trained):
    tokenizer = SentencePiece(trained.path)
    fresh = pickle.dumps(tokenizer)
    ids = tokenizer.encode("one hundred")
    assert pickle.dumps(tokenizer) == fresh
    again = pickle.loads(fresh)
    assert again == tokenizer and again.vocab_size == 40
    assert again.encode("one hundred") == ids == trained.encode("one hundred")


def test_a_model_of_another_corpus_or_size_is_told(trained):
    other = SentencePiece(trained.path, Training(LINES[1:], 40))
    with pytest.raises(UserError, match=r"trained with other settings \(corpus\): rem"):
        other.prepare()
    other = SentencePiece(trained.path, Training(LINES, 40, kind="bpe"))
    with pytest.raises(UserError, match=r"trained with other settings \(kind\)"):
        other.prepare()
    other = SentencePiece(trained.path, Training(LINES, 41))
    with pytest.raises(UserError, match="has 40 pieces, expected 41: remove it"):
        other.encode("one")


def test_both_sides_of_a_corpus_can_be_trained_on(tmp_path):
    pairs = ParallelText(str(texts.parallel(tmp_path)))
    training = Training(pairs, 60, ("source", "target"), character_coverage=1.0)
    tokenizer = SentencePiece(str(tmp_path / "a.model"), training)
    tokenizer.prepare()
    for text in ("A man eats.", "Ein Mann schläft."):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_records_are_made_where_the_files_are_not(tmp_path):
    """For building an experiment: what it needs to know is in its settings."""
    path = str(tmp_path / "nowhere")
    for tokenizer in (
        SentencePiece(path),
        SentencePiece(path, Training(LINES, 40)),
        HuggingFaceTokenizer(path),
        Marian(path, "target"),
    ):
        assert isinstance(tokenizer, Tokenizer)
        assert all_missing([Tokenize(tokenizer)])
    trained = SentencePiece(path, Training(LINES, 40))
    assert trained.special == Special() and trained.vocab_size == 40


def test_what_cannot_be_trained_or_read_is_told(tmp_path):
    path = tmp_path / "a.model"
    with pytest.raises(UserError, match=f"no {path}: put it there"):
        SentencePiece(str(path)).prepare()
    with pytest.raises(UserError, match=f"no {path}: python -m launch.prepare"):
        SentencePiece(str(path), Training(LINES, 40)).encode("a")
    with pytest.raises(UserError, match="no .* of 9999 pieces .* too high"):
        SentencePiece(str(path), Training(LINES, 9999)).prepare()
    for damaged in (b"", b"no model"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read as a SentencePiece model"):
            SentencePiece(str(path)).prepare()


# Public layouts


@pytest.fixture
def bert(tmp_path):
    """A folder as Hugging Face's BERT has it, with eight tokens."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "a"]
    special = [
        {
            "id": i,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, name in enumerate(names[:5])
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {name: i for i, name in enumerate(names)},
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": {"content": "[SEP]", "special": True},
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_public_tokenizer_keeps_its_ids(bert):
    tokenizer = HuggingFaceTokenizer(str(bert))
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.vocab_size == 8 and tokenizer.prepare() == "8 tokens"
    assert tokenizer.special == Special(pad=0, end=3, unknown=1, begin=2, mask=4)
    assert tokenizer.encode("Playing a b") == [5, 6, 7, 1]  # and is not cut at 2
    assert tokenizer.decode([2, 5, 6, 7, 3, 0]) == "playing a"
    with pytest.raises(UserError, match="id 8 is not in a vocabulary of 8"):
        tokenizer.decode([8])
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again == tokenizer and again.encode("a") == [7]


def test_a_public_tokenizer_that_is_not_there_is_told(tmp_path):
    tokenizer = HuggingFaceTokenizer(str(tmp_path))
    assert tokenizer.missing() == [str(tmp_path / "tokenizer.json")]
    with pytest.raises(UserError, match="no .*tokenizer.json: .* set its folder"):
        tokenizer.encode("a")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json cannot be read: "):
        tokenizer.encode("a")


@pytest.fixture
def marian(tmp_path, trained):
    """A folder as Marian has it: both sides' pieces, numbered otherwise."""
    model = trained._file.read_bytes()
    for side in ("source", "target"):
        (tmp_path / f"{side}.spm").write_bytes(model)
    pieces = [trained._processor.id_to_piece(i) for i in range(4, 40)]
    names = ["</s>", "<unk>", *reversed(pieces), "<pad>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    return tmp_path


def test_marian_numbers_pieces_by_the_shared_vocabulary(marian, trained):
    tokenizer = Marian(str(marian), "source")
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.vocab_size == 39 and tokenizer.prepare() == "40 pieces, 39 ids"
    assert tokenizer.special == Special(pad=38, end=0, unknown=1, begin=38)
    ids = tokenizer.encode("one")
    assert ids == [41 - i for i in trained.encode("one")]
    assert tokenizer.decode([38, *ids, 0, 38]) == "one"
    assert tokenizer.encode("\u4e2d")[-1] == 1
    (marian / "source.spm").unlink()
    assert tokenizer.missing() == [str(marian / "source.spm")]
    with pytest.raises(UserError, match="no .*source.spm: .* set its folder"):
        Marian(str(marian), "source").encode("a")
