"""Text that a language model goes on with."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from research.data.tokenizers import Tokenizer
from research.decoding.sampling import Choose, Sample
from research.evals.base import Context
from research.tasks.base import Variables
from research.train.sharding import batch_sharding, replicated


@runtime_checkable
class GeneratingTask(Protocol):
    """A task whose model writes on."""

    def generate(
        self,
        variables: Variables,
        rng: Key[Array, ""],
        prompt: Int[Array, "rows prompt"],
        num: int,
        choose: Choose,
        lengths: Int[Array, "rows"] | None = None,
    ) -> Int[Array, "rows length"]:
        """Each prompt, which may be empty, and `num` tokens or padding after it.

        Prompts of other `lengths` than the whole width are padded on the right.
        """
        ...


@dataclass(frozen=True)
class TextSamples:
    """Writes `num` continuations of a prompt, or of several, to `<step>.txt`.

    Reports `length`, the mean of their tokens, the prompt's and padding apart; and
    `distinct`, how many of these tokens are different ones, as a share of all: a model
    that repeats itself has few.

    Attributes:
      tokenizer: of the task's data.
      prompt: the text that all begin with; of several each in turn.
      num: how many.
      length: tokens after the prompt, at most.
      choose: how they are chosen.
      every: steps between evaluations.
    """

    tokenizer: Tokenizer
    prompt: str | tuple[str, ...] = ""
    num: int = 8
    length: int = 200
    choose: Choose = Sample()
    every: int = 0

    def __call__(
        self, task: GeneratingTask, variables: Variables, context: Context
    ) -> dict[str, float]:
        given = (self.prompt,) if isinstance(self.prompt, str) else self.prompt
        encoded = [self.tokenizer.encode(text) for text in given]
        # Padded to the mesh: every device writes some rows.
        surplus = -self.num % context.mesh.size
        rows = [encoded[i % len(encoded)] for i in range(self.num + surplus)]
        lengths = np.array([len(row) for row in rows], np.int32)
        prompt = np.zeros((len(rows), lengths.max()), np.int32)
        for row, ids in zip(prompt, rows, strict=True):
            row[: len(ids)] = ids
        rng = jax.random.key(context.seed)
        tokens = jax.device_get(
            _generate(
                task,
                variables,
                rng,
                jnp.asarray(prompt),
                jnp.asarray(lengths),
                self.length,
                self.choose,
                context.mesh,
            )
        )[: self.num]
        if jax.process_index() == 0:
            context.folder.mkdir(parents=True, exist_ok=True)
            path = context.folder / f"{context.step:08d}.txt"
            path.write_text("".join(map(self._entry, range(self.num), tokens)), "utf-8")
        written = np.arange(tokens.shape[1]) >= lengths[: self.num, None]
        real = tokens[written & (tokens != (self.tokenizer.special.pad or 0))]
        return {
            "length": real.size / self.num,
            "distinct": len(np.unique(real)) / max(real.size, 1),
        }

    def _entry(self, number: int, row: np.ndarray) -> str:
        known = [int(i) for i in row if i < self.tokenizer.vocab_size]
        return f"--- {number}\n{self.tokenizer.decode(known)}\n"


@partial(jax.jit, static_argnums=(0, 5, 6, 7))
def _generate(
    task: GeneratingTask,
    variables: Variables,
    rng: Array,
    prompt: Array,
    lengths: Array,
    num: int,
    choose: Choose,
    mesh: Mesh,
) -> Any:
    prompt = jax.lax.with_sharding_constraint(prompt, batch_sharding(mesh))
    tokens = task.generate(variables, rng, prompt, num, choose, lengths)
    return jax.lax.with_sharding_constraint(tokens, replicated(mesh))
