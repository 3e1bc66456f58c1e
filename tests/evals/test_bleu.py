from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sacrebleu

from research.data.loader import Data
from research.data.tokenizers import Bytes
from research.errors import UserError
from research.evals.bleu import Bleu
from tests.evals.fakes import make_context

PAIRS = [
    ("ein Hund läuft", "a dog is running over the grass"),
    ("zwei Männer", "two men sit on a red bench , talking"),
    ("Kinder", "children play"),
    ("eine Frau kocht", "a woman is cooking in her small kitchen"),
    ("ein Haus", "an old house near the sea"),
] * 2
TOKENIZER = Bytes()


def encoded(text, length=64):
    ids = [*TOKENIZER.encode(text), TOKENIZER.special.end]
    return np.array(ids + [0] * (length - len(ids)), np.int32)


@dataclass(frozen=True)
class Parrot:
    """Gives back the target with every `changed` byte replaced; 0 changes nothing.

    What follows the end is noise, and so are ids beyond the tokenizer's vocabulary.
    """

    beam_size: int = 1
    changed: int = 0
    traces: list = field(default_factory=list, compare=False, hash=False)

    def translate(self, variables, batch, rng):
        self.traces.append(self.beam_size)
        target = batch["target"]
        space = TOKENIZER.encode("x")[0]
        tokens = jnp.where(target == self.changed, space, target)
        tokens = jnp.where(self.beam_size > 1, batch["source"], tokens)
        tail = jnp.cumsum(target == TOKENIZER.special.end, 1) > 0
        noise = jax.random.randint(rng, target.shape, 4, 200)
        tokens = jnp.where(tail & (target == 0), noise, tokens)
        return jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=TOKENIZER.vocab_size)


def context(folder):
    source = [
        {"source": encoded(source), "target": encoded(target)}
        for source, target in PAIRS
    ]
    data = Data(train=source, eval={"test": source}, batch_size=8)
    return make_context(folder, data=data)


def test_scores_are_sacrebleus(tmp_path):
    task = Parrot(changed=TOKENIZER.encode("e")[0])
    values = Bleu(TOKENIZER, batch_size=8)(task, {}, context(tmp_path / "new"))
    hypotheses = [target.replace("e", "x") for _, target in PAIRS]
    references = [[target for _, target in PAIRS]]
    bleu = sacrebleu.corpus_bleu(hypotheses, references)
    chrf = sacrebleu.corpus_chrf(hypotheses, references)
    assert 5 < bleu.score < 60
    expected = {"bleu": bleu.score, "chrf": chrf.score, "length_ratio": 1.0}
    expected["exact"] = 0.0
    assert values == pytest.approx(expected)
    text = (tmp_path / "new" / "00000070.txt").read_text()
    head, *examples = text.rstrip().split("\n\n")
    assert "version:" in head and f"{bleu.score:.1f}" in head and len(examples) == 10
    source, target = PAIRS[1]
    assert examples[1].split("\n") == [source, target, target.replace("e", "x")]


def test_the_same_text_scores_a_hundred(tmp_path):
    task = Parrot()
    evaluate = Bleu(TOKENIZER, batch_size=8, num_examples=7, num_written=2)
    for _ in range(2):
        values = evaluate(task, {}, context(tmp_path))
    perfect = {"bleu": 100, "chrf": 100, "length_ratio": 1, "exact": 1}
    assert values == pytest.approx(perfect)
    assert task.traces == [1]  # compiled once
    assert len((tmp_path / "00000070.txt").read_text().split("\n\n")) == 3
    evaluate = Bleu(TOKENIZER, batch_size=8, beam_size=4, num_written=0, split="train")
    values = evaluate(task, {}, context(tmp_path / "none"))
    assert values["bleu"] < 1 and values["length_ratio"] < 0.5
    assert not (tmp_path / "none").exists()


def test_what_is_exactly_its_reference_is_counted(tmp_path):
    task = Parrot(changed=TOKENIZER.encode("k")[0])
    values = Bleu(TOKENIZER, batch_size=8)(task, {}, context(tmp_path))
    exact = np.mean(["k" not in target for _, target in PAIRS])
    assert 0 < exact < 1 and values["exact"] == pytest.approx(exact)


def test_references_may_be_texts(tmp_path):
    lines = [
        {"source": source.encode(), "target": target.upper()}
        for source, target in PAIRS
    ]

    def run(**kwargs):
        evaluate = Bleu(TOKENIZER, batch_size=8, num_examples=9, **kwargs)
        return evaluate(Parrot(), {}, context(tmp_path))["bleu"]

    assert run(text=lines, lowercase=True) == pytest.approx(100)
    assert run(text=lines) < 5
    assert PAIRS[8][1].upper() in (tmp_path / "00000070.txt").read_text()
    with pytest.raises(UserError, match="has 9 examples, but split 'test' has 10"):
        run(text=lines[:9])


class Plain:
    def translate(self, variables, batch, rng):
        return batch["target"]


def test_a_task_without_a_beam_is_told(tmp_path):
    with pytest.raises(UserError, match="beam_size=4: Plain has no beam_size"):
        Bleu(TOKENIZER, beam_size=4)(Plain(), {}, context(tmp_path))
