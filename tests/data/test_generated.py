"""Made-up tasks: their answers, worked out another way, and their distribution."""

import pickle
from collections import Counter
from statistics import median_low

import numpy as np
import pytest

from research.data.generated import (
    LISTOPS,
    CopyTask,
    ListOps,
    ModularSum,
    NumberWords,
    ReverseTask,
    below,
    draws,
    english,
    german,
)
from research.data.permutation import GOLDEN, mix
from research.data.tokenizers import BEGIN, NUM_SPECIAL
from research.errors import UserError

MINI = {
    "max_depth": 3,
    "max_args": 4,
    "min_length": 0,
    "max_length": 49,
    "only_operators": True,
}

EACH = pytest.mark.parametrize(
    "task",
    [CopyTask, ReverseTask, ModularSum, lambda n, **s: ListOps(n, **MINI, **s)],
    ids=["copy", "reverse", "sum", "listops"],
)


def told(example: dict) -> list:
    return [(name, np.asarray(v).tolist()) for name, v in example.items()]


@EACH
def test_an_example_depends_on_seed_and_index_alone(task):
    source = task(200)
    examples = [told(source[i]) for i in range(200)]
    assert [told(task(10**12)[i]) for i in (199, 3)] == [examples[199], examples[3]]
    again = pickle.loads(pickle.dumps(source))
    assert again == source and told(again[5]) == examples[5]
    assert len({str(e) for e in examples}) > 190
    others = {str(told(task(200, seed=1)[i])) for i in range(200)}
    assert len(others & {str(e) for e in examples}) < 30
    for beyond in (200, -1):
        with pytest.raises(IndexError):
            source[beyond]


@EACH
def test_tokens_fill_the_vocabulary_behind_the_special_ids(task):
    source = task(300)
    tokens = np.concatenate([source[i]["tokens"] for i in range(300)])
    assert tokens.dtype == np.int32
    assert set(tokens.tolist()) - {BEGIN} == set(range(NUM_SPECIAL, source.vocab_size))


def test_the_draws_are_fixed_for_ever():
    # Results that were published rest on them: these numbers may not change.
    assert draws(0, 0, 0, 2).tolist() == [6235967106033911276, 4964577235801436555]
    # SplitMix64's first output from the seed 0, as its author gives it.
    assert int(mix(np.array([GOLDEN]))[0]) == 0xE220A8397B1DCDAF
    np.testing.assert_array_equal(draws(7, 3, 5, 4), draws(7, 3, 0, 9)[5:])
    assert below(10, draws(1, 2, 0, 8)).tolist() == [8, 8, 3, 9, 6, 2, 4, 0]


def test_draws_are_uniform_and_unrelated():
    rows = np.stack([below(10, draws(0, i, 0, 50)) for i in range(2000)])
    counts = np.stack([np.bincount(column, minlength=10) for column in rows.T])
    # Sum of squared deviations: chi-squared of 9 x 50 degrees of freedom.
    assert abs(((counts - 200) ** 2 / 200).sum() - 450) < 5 * np.sqrt(900)
    same = (rows[:, 1:] == rows[:, :-1]).mean(), (rows[1:] == rows[:-1]).mean()
    np.testing.assert_allclose(same, 0.1, atol=0.004)


# Copies and sums


def test_a_word_is_said_twice():
    source = CopyTask(50, length=5, num_symbols=3)
    for i in range(50):
        tokens, weights = source[i]["tokens"], source[i]["weights"]
        assert tokens.shape == (12,) and weights.dtype == np.float32
        assert tokens[0] == tokens[6] == BEGIN
        np.testing.assert_array_equal(tokens[1:6], tokens[7:])
        assert weights.tolist() == [0.0] * 7 + [1.0] * 5
    assert source.vocab_size == 7
    duplication = CopyTask(1, length=511, num_symbols=127)
    assert duplication[0]["tokens"].shape == (1024,)


def test_a_word_is_said_backwards():
    source, copy = ReverseTask(50, 5, 3), CopyTask(50, 5, 3)
    for i in range(50):
        tokens = source[i]["tokens"]
        np.testing.assert_array_equal(tokens[:7], copy[i]["tokens"][:7])
        np.testing.assert_array_equal(tokens[1:6], tokens[:6:-1])
        np.testing.assert_array_equal(source[i]["weights"], copy[i]["weights"])


def test_sums_are_those_of_the_last_terms():
    source = ModularSum(50)
    assert source.vocab_size == 12
    for i in range(50):
        x, y = (source[i][n].tolist() for n in ("tokens", "targets"))
        assert len(x) == len(y) == 16 and source[i]["targets"].dtype == np.int32
        for place in range(16):
            last = [token - 4 for token in x[max(0, place - 2) : place + 1]]
            assert y[place] == 4 + sum(last) % 8
    longer = ModularSum(1, length=9, modulus=5, num_terms=4)[0]
    assert longer["targets"][8] == 4 + (longer["tokens"][5:] - 4).sum() % 5


# ListOps


def evaluate(text: str) -> int:
    """The value of a list, by a stack of its own."""
    functions = {
        "[MIN": min,
        "[MAX": max,
        "[MED": lambda v: int(np.median(v)),
        "[SM": lambda v: sum(v) % 10,
    }
    stack: list = []
    for symbol in text.split():
        if symbol == "]":
            values = []
            while isinstance(stack[-1], int):
                values.append(stack.pop())
            stack.append(functions[stack.pop()](values))
        else:
            stack.append(symbol if symbol in functions else int(symbol))
    (value,) = stack
    return value


def depth_of(text: str) -> int:
    """The most brackets that are open at once."""
    steps = [(s[0] == "[") - (s == "]") for s in text.split()]
    return int(np.cumsum([0, *steps]).max())


def test_listops_values_are_those_of_an_evaluator():
    source = ListOps(300, **MINI)
    for i in range(300):
        example = source[i]
        text = LISTOPS.decode(example["tokens"])
        assert example["label"] == evaluate(text), text
        assert example["label"].dtype == np.int32
        assert LISTOPS.encode(text) == example["tokens"].tolist()


def test_full_size_listops_keep_their_limits():
    source = ListOps(5)
    depths = []
    for i in range(5):
        text = LISTOPS.decode(source[i]["tokens"])
        assert 500 < len(text.split()) < 2000
        assert source[i]["label"] == evaluate(text)
        depths.append(depth_of(text))
    assert max(depths) == 9  # at depth 10 there are digits only


def test_listops_trees_are_distributed_as_their_generators():
    """Lengths have a mean that follows from the rules: 2 + 3 (1 + 1/4 x 4) = 8."""
    source = ListOps(1000, **MINI)
    texts = [LISTOPS.decode(source[i]["tokens"]).split() for i in range(1000)]
    lengths = np.array([len(text) for text in texts])
    assert abs(lengths.mean() - 8) < 4 * lengths.std() / np.sqrt(1000)
    counts = Counter(symbol for text in texts for symbol in text)
    operators = [counts[name] for name in ("[MIN", "[MAX", "[MED", "[SM")]
    digits = [counts[str(digit)] for digit in range(10)]
    for numbers in (operators, digits):
        assert max(numbers) - min(numbers) < 6.5 * np.sqrt(np.mean(numbers))
    arguments = sum(operators) - 1000 + sum(digits)
    assert abs(arguments / sum(operators) - 3) < 0.08
    assert max(depth_of(" ".join(text)) for text in texts) == 2
    assert {text[0] for text in texts} == {"[MIN", "[MAX", "[MED", "[SM"}


def test_no_tree_is_in_two_splits():
    splits = ("train", "validation", "test")
    small = {**MINI, "max_depth": 2, "max_args": 2}  # 400 trees in all
    trees = []
    for split in splits:
        source = ListOps(600, split=split, **small)
        trees.append({source[i]["tokens"].tobytes() for i in range(600)})
    assert all(trees) and len(set.union(*trees)) == sum(map(len, trees))
    assert len(trees[0]) > 1.4 * len(trees[1])


def test_the_root_can_be_a_digit():
    source = ListOps(400, max_depth=2, min_length=0, max_length=20)
    digits = sum(len(source[i]["tokens"]) == 1 for i in range(400))
    assert abs(digits - 300) < 4 * np.sqrt(400 * 0.75 * 0.25)


def test_listops_of_others_are_read_with_the_same_ids():
    text = "( ( ( ( [MED 6 ) 5 ) 9 ) ] )"
    assert LISTOPS.decode(LISTOPS.encode(text)) == "[MED 6 5 9 ]"
    assert evaluate("[MED 6 5 9 ]") == median_low([6, 5, 9]) == 6
    assert LISTOPS.vocab_size == 4 + 15


# Numbers in words

SMALL = dict(zip(map(english, range(100)), range(100), strict=True))
KLEIN = dict(zip(map(german, range(1, 1000)), range(1, 1000), strict=True))


def read_english(text: str) -> int:
    """The number, read word by word."""
    total = part = 0
    for word in text.split():
        if word == "thousand":
            total, part = part * 1000, 0
        elif word == "hundred":
            part *= 100
        else:
            part += SMALL[word]
    return total + part


def test_number_words_are_those_of_both_languages():
    assert [english(n) for n in (0, 13, 20, 21, 90, 99)] == [
        "zero",
        "thirteen",
        "twenty",
        "twenty-one",
        "ninety",
        "ninety-nine",
    ]
    assert english(100) == "one hundred"
    assert english(417_012) == "four hundred seventeen thousand twelve"
    for number, word in {
        0: "null",
        1: "eins",
        12: "zwölf",
        16: "sechzehn",
        17: "siebzehn",
        21: "einundzwanzig",
        30: "dreißig",
        66: "sechsundsechzig",
        77: "siebenundsiebzig",
        100: "einhundert",
        101: "einhunderteins",
        111: "einhundertelf",
        1000: "eintausend",
        1001: "eintausendeins",
        21_021: "einundzwanzigtausendeinundzwanzig",
        101_000: "einhunderteintausend",
        999_999: "neunhundertneunundneunzigtausendneunhundertneunundneunzig",
    }.items():
        assert german(number) == word


def test_number_words_can_be_read_back():
    assert len(SMALL) == 100 and len(KLEIN) == 999  # no two are alike
    for number in {*range(1, 2000), *range(0, 10**6, 997), *range(990_001, 10**6, 31)}:
        assert read_english(english(number)) == number
        high, _, low = german(number).rpartition("tausend")
        if high:
            # Before another word eins is ein.
            thousands = KLEIN.get(high) or KLEIN[f"{high}s"]
            assert 1000 * thousands + (KLEIN[low] if low else 0) == number
        elif number:
            assert KLEIN[low] == number


def test_ranges_of_places_share_no_number():
    train, test = NumberWords(900), NumberWords(100, start=900)
    sources = [train[i]["source"] for i in range(900)]
    held_out = [test[i]["source"] for i in range(100)]
    assert len({*sources, *held_out}) == 1000
    assert train[3] == NumberWords(10)[3] != NumberWords(10, seed=1)[3]
    numbers = np.array([read_english(text) for text in sources])
    assert abs(numbers.mean() - 5e5) < 4 * 288_675 / 30
    assert NumberWords(1, start=10**6 - 1)[0]
    for num, start in ((1, 10**6), (-1, 5), (5, -1)):
        with pytest.raises(UserError, match="expected some of 0 to 1000000"):
            NumberWords(num, start)
