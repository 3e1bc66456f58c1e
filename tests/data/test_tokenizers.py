"""Tokenizers: what comes back, what ids mean, what is refused."""

import pickle

import numpy as np
import pytest

from research.data.text import Lines, ParallelText
from research.data.tokenizers import (
    END,
    NUM_SPECIAL,
    UNKNOWN,
    Bytes,
    Characters,
    Special,
    Symbols,
    Tokenizer,
    Words,
    alphabet_of,
    word_pieces,
)
from research.errors import UserError
from tests.data import texts
from tests.data.texts import unicode_texts

TEXTS = [{"text": text} for text in unicode_texts(200)]
CORPUS = [{"text": text} for text in ("B a b a", "b c ccc", "ccc a")]

EACH = pytest.mark.parametrize(
    "tokenizer",
    [
        Bytes(),
        Characters("abc \n\u4e2d"),
        Symbols(("[MAX", "1", "]"), ignored=("(",)),
        Words(CORPUS, 20),
    ],
    ids=lambda tokenizer: type(tokenizer).__name__,
)


@EACH
def test_ids_are_in_the_vocabulary_and_special_ones_are_not_made(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.special == Special(pad=0, end=1, unknown=2, begin=3, mask=None)
    for example in TEXTS:
        ids = tokenizer.encode(example["text"])
        assert all(i == UNKNOWN or NUM_SPECIAL <= i for i in ids)
        assert all(i < tokenizer.vocab_size for i in ids)


@EACH
def test_special_ids_stand_for_no_text(tokenizer):
    text = "1 ] a c"
    ids = tokenizer.encode(text)
    framed = [3, *ids[:1], 0, *ids[1:], 1, 0, 0]
    assert tokenizer.decode(framed) == tokenizer.decode(ids)
    assert tokenizer.decode(np.array(framed, np.int32)) == tokenizer.decode(ids)
    assert tokenizer.decode([]) == ""


@EACH
def test_ids_beyond_the_vocabulary_are_refused(tokenizer):
    size = tokenizer.vocab_size
    tokenizer.decode([size - 1])
    for wrong in (size, -1):
        with pytest.raises(UserError, match=f"id {wrong} is not in a vocabulary of"):
            tokenizer.decode([1, wrong])


@EACH
def test_a_used_tokenizer_pickles_as_its_fields(tokenizer):
    fresh = pickle.dumps(tokenizer)
    ids = tokenizer.encode("a b 1 ]")
    assert pickle.dumps(tokenizer) == fresh
    again = pickle.loads(fresh)
    assert again == tokenizer and again.encode("a b 1 ]") == ids


def test_bytes_bring_every_text_back():
    assert Bytes().vocab_size == 260
    assert Bytes().encode("a\u00e4") == [4 + 0x61, 4 + 0xC3, 4 + 0xA4]
    for example in TEXTS:
        assert Bytes().decode(Bytes().encode(example["text"])) == example["text"]
    assert Bytes().decode([4 + 0xC3, UNKNOWN]) == "\ufffd\ufffd"


def test_characters_bring_every_text_of_their_alphabet_back():
    alphabet = alphabet_of(TEXTS)
    assert list(alphabet) == sorted({c for e in TEXTS for c in e["text"]})
    tokenizer = Characters(alphabet)
    assert tokenizer.vocab_size == NUM_SPECIAL + len(alphabet)
    for example in TEXTS:
        text = example["text"]
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and len(ids) == len(text)
    assert Characters("ab").encode("abx") == [4, 5, UNKNOWN]
    assert Characters("ab").decode([5, UNKNOWN]) == "b\ufffd"


def test_the_alphabet_can_leave_the_rare_out():
    assert alphabet_of(CORPUS) == " Babc"
    assert alphabet_of(CORPUS, min_count=3) == " ac"
    pairs = [{"source": "ab", "target": "bc"}]
    assert alphabet_of(pairs, ("source", "target")) == "abc"
    assert alphabet_of([{"text": "\u00e4".encode()}]) == "\u00e4"  # as TFDS gives it
    with pytest.raises(UserError, match="example 0 of .* has no 'text': it has source"):
        alphabet_of(pairs)


def test_symbols_are_between_spaces():
    tokenizer = Symbols(("0", "[MAX", "]"), ignored=("(", ")"))
    ids = tokenizer.encode("( ( [MAX 0 )  ? ] )")
    assert ids == [5, 4, UNKNOWN, 6]
    assert tokenizer.decode([*ids, END]) == "[MAX 0 <unk> ]"


def test_symbols_occur_once():
    with pytest.raises(UserError, match="Characters.alphabet has 'b' twice: expected"):
        Characters("abcb")
    with pytest.raises(UserError, match="Symbols has '1' twice"):
        Symbols(("1", "2"), ignored=("1",))
    with pytest.raises(UserError, match="Characters.alphabet has nothing"):
        Characters("")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Don't pay 1,500.50!", "Don 't pay 1,500.50 !"),
        ("a well-known man's hat -- 'so'", "a well-known man 's hat - - ' so '"),
        ("Um 10:30, in Köln\u2028(z.B.)...", "Um 10:30 , in Köln ( z . B . ) ..."),
        ("5.", "5 ."),
        ("  ", ""),
    ],
)
def test_words_and_signs_come_apart(text, pieces):
    assert word_pieces(text) == pieces.split()


def test_no_letter_is_lost_between_words():
    for example in TEXTS:
        text = example["text"]
        assert "".join(word_pieces(text)) == "".join(text.split())


def test_words_are_known_by_frequency():
    tokenizer = Words(CORPUS, 10)
    # b: 3 with its capital, a: 3, ccc: 2, c: 1.
    assert tokenizer.words == ("a", "b", "ccc", "c")
    assert tokenizer.vocab_size == 10
    assert tokenizer.encode("B c, unseen") == [5, 7, UNKNOWN, UNKNOWN]
    assert tokenizer.decode([5, 6, UNKNOWN, 9]) == "b ccc <unk> <unk>"
    assert Words(CORPUS, 6).words == ("a", "b")
    assert Words(CORPUS, 10, min_count=2).words == ("a", "b", "ccc")
    assert Words(CORPUS, 10, lowercase=False).words == ("a", "b", "ccc", "B", "c")
    with pytest.raises(UserError, match="Words.vocab_size=4: expected more than"):
        Words(CORPUS, 4)


def test_words_of_one_side_of_a_corpus(tmp_path):
    pairs = ParallelText(str(texts.parallel(tmp_path)))
    english, german = (Words(pairs, 100, (part,)) for part in ("source", "target"))
    assert "mann" in german.words and "mann" not in english.words
    assert (
        english.missing() == [] and english.prepare() == f"{len(english.words)} words"
    )


def test_what_is_missing_of_the_corpus_is_missing_of_its_words(tmp_path):
    tokenizer = Words(Lines(str(tmp_path / "absent.txt")), 100)
    assert tokenizer.missing() == [str(tmp_path / "absent.txt")]
    assert tokenizer.vocab_size == 100  # for building where the data are not
    with pytest.raises(UserError, match="absent.txt"):
        tokenizer.encode("a")
