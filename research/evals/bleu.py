"""Translations of held-out examples, scored against their references."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from research.data.sources import Source
from research.data.tokenizers import Tokenizer, as_text
from research.errors import UserError
from research.evals.base import Context
from research.tasks.base import Batch, Variables
from research.train.sharding import replicated


@runtime_checkable
class TranslationTask(Protocol):
    """A task that answers one sequence of tokens with another.

    One that can search with more or fewer hypotheses is a frozen record with the field
    `beam_size`.
    """

    def translate(
        self, variables: Variables, batch: Batch, rng: Key[Array, ""]
    ) -> Int[Array, "batch length"]:
        """For each row of `batch["source"]` the translation and padding after it."""
        ...


class Sentence(NamedTuple):
    """One example, as text."""

    source: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Bleu:
    """Translates a split and scores the texts with sacrebleu.

    The first examples go to `<step>.txt`, beside the scores and what sacrebleu calls
    their signature: the version and the settings that others need to compare.

    Reports `bleu` (Papineni et al. 2002) and `chrf` (Popović 2015), both of the whole
    corpus and from 0 to 100, `length_ratio`, words of the translations to words of the
    references, and `exact`, the part of the translations that are their references.

    Attributes:
      tokenizer: makes text of the targets' tokens. Those that it does not have, as of a
        vocabulary rounded up, stand for nothing.
      split: of the data; its batches hold `source` and `target`.
      source_tokenizer: the sources', if another.
      text: the split's examples as text, `source` and `target`, in its order and as
        many. Without it the references are decoded from the targets' tokens, which is
        the same only where a tokenizer gives back every text as it was.
      num_examples: of the split, from its beginning; 0 for all.
      batch_size: examples translated at a time.
      beam_size: that the task searches with here; 0 for its own.
      tokenize: sacrebleu's way to tell words; `none` for text that is tokenized.
      lowercase: whether case makes no difference to BLEU.
      num_written: examples in the file.
      every: steps between evaluations.
    """

    tokenizer: Tokenizer
    split: str = "test"
    source_tokenizer: Tokenizer | None = None
    text: Source | None = None
    num_examples: int = 0
    batch_size: int = 64
    beam_size: int = 0
    tokenize: str = "13a"
    lowercase: bool = False
    num_written: int = 20
    every: int = 0

    def __call__(
        self, task: TranslationTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        if self.beam_size:
            task = _with_beam(task, self.beam_size)
        sentences = self._sentences(task, variables, context)
        hypotheses = [sentence.hypothesis for sentence in sentences]
        references = [[sentence.reference for sentence in sentences]]
        bleu = BLEU(tokenize=self.tokenize, lowercase=self.lowercase)
        chrf = CHRF()
        scores = [m.corpus_score(hypotheses, references) for m in (bleu, chrf)]
        if jax.process_index() == 0 and self.num_written:
            context.folder.mkdir(parents=True, exist_ok=True)
            head = [
                score.format(signature=str(metric.get_signature()))
                for score, metric in zip(scores, (bleu, chrf), strict=True)
            ]
            parts = ["\n".join(head), *map("\n".join, sentences[: self.num_written])]
            path = context.folder / f"{context.step:08d}.txt"
            path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        words: Any = scores[0]
        return {
            "bleu": float(scores[0].score),
            "chrf": float(scores[1].score),
            "length_ratio": float(words.sys_len / max(words.ref_len, 1)),
            "exact": sum(map(str.__eq__, hypotheses, references[0]))
            / max(len(hypotheses), 1),
        }

    def _sentences(
        self, task: TranslationTask, variables: Variables, context: Context
    ) -> list[Sentence]:
        splits = {"train": context.data.train, **context.data.eval}
        size = len(splits.get(self.split, ()))
        if self.text is not None and len(self.text) != size:
            raise UserError(
                f"{self.text!r:.200} has {len(self.text)} examples, but split "
                f"{self.split!r} has {size}: expected the same ones, as text"
            )
        rng = jax.random.key(context.seed)
        rows: list[tuple[np.ndarray, ...]] = []
        with closing(context.batches(self.split, self.batch_size)) as batches:
            for index, batch in enumerate(batches):
                key = jax.random.fold_in(rng, index)
                output = _translate(task, variables, batch, key, context.mesh)
                *parts, mask = jax.device_get(output)
                examples = zip(*parts, mask, strict=True)
                rows += [tuple(parts) for *parts, real in examples if real > 0]
                if 0 < self.num_examples <= len(rows):
                    break
        tokenizers = (self.source_tokenizer or self.tokenizer, *[self.tokenizer] * 2)
        sentences = [
            Sentence(*map(_decode, tokenizers, row))
            for row in rows[: self.num_examples or None]
        ]
        if self.text is None:
            return sentences
        return [
            Sentence(as_text(text["source"]), as_text(text["target"]), s.hypothesis)
            for s, text in zip(sentences, _examples(self.text), strict=False)
        ]


@partial(jax.jit, static_argnums=(0, 4))
def _translate(
    task: TranslationTask, variables: Variables, batch: Batch, rng: Array, mesh: Mesh
) -> Any:
    tokens = task.translate(variables, batch, rng)
    parts = (batch["source"], batch["target"], tokens, batch["mask"])
    return jax.lax.with_sharding_constraint(parts, replicated(mesh))


def _with_beam(task: Any, beam_size: int) -> Any:
    if not hasattr(task, "beam_size"):
        raise UserError(
            f"beam_size={beam_size}: {type(task).__name__} has no beam_size; leave it "
            "0 for the task's own way to search"
        )
    return replace(task, beam_size=beam_size)


def _examples(source: Source) -> Iterator[Any]:
    return (source[index] for index in range(len(source)))


def _decode(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> str:
    """On one line, up to the end of the sequence."""
    known = [int(i) for i in ids if i < tokenizer.vocab_size]
    end = tokenizer.special.end
    if end in known:
        known = known[: known.index(end)]
    return " ".join(tokenizer.decode(known).split())
