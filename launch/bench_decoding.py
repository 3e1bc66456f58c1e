"""Time the generation of translations, alone or beside transformers' own `generate`.

    python -m launch.bench_decoding --torch
    python -m launch.bench_decoding ~/opus-mt-en-de --torch --beam-size 4

A folder in a public layout says what network it is; without one it is a fresh network
of the size of opus-mt-en-de (Helsinki-NLP). All makers get the same folder, sources and
numbers of tokens, and are told never to end, so that every row takes them all; how many
of the tokens agree is printed, too. `--torch` needs the packages of
`pip install -e '.[parity]'`.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from launch.bench import find_peer
from launch.cli import run, start
from launch.timing import Contender, Timing, race
from research import pretrained
from research.decoding.search import beam_search, generate
from research.errors import UserError
from research.models.transformer import EncoderDecoder
from research.pretrained import marian
from research.tasks.base import Variables

PEER = "launch.peers.decoding:generators"
OURS = "ours"
NEVER = -1
"""No token: what ends a sequence that is not to end."""

OPUS = {
    "model_type": "marian",
    "vocab_size": 58101,
    "decoder_vocab_size": 58101,
    "d_model": 512,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
    "activation_function": "swish",
    "scale_embedding": True,
    "pad_token_id": 58100,
    "max_position_embeddings": 512,
}
"""Of Helsinki-NLP/opus-mt-en-de, its config.json."""


@dataclass(frozen=True)
class Generator:
    """Someone's generation, ready to run.

    Attributes:
      name: who.
      generate: gives the new tokens (rows, new tokens), the best of each row.
    """

    name: str
    generate: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Workload:
    """What all have to do.

    Attributes:
      folder: holds the network.
      source: tokens (rows, source length), none of them padding.
      new_tokens: of each row.
      beam_size: hypotheses; 1 takes the likeliest token at each place.
      begin: stands before the first new token.
    """

    folder: str
    source: np.ndarray
    new_tokens: int
    beam_size: int
    begin: int


def fresh(folder: str) -> None:
    """Writes a network of the size of opus-mt-en-de with fresh weights."""
    model = marian.model_of(OPUS)
    token = jnp.zeros((1, 2), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), token, token)
    pretrained.save(folder, model, jax.device_get(variables))


def network_of(folder: str) -> tuple[EncoderDecoder, Variables]:
    """The network of a folder, and its variables.

    Raises:
      UserError: none that translates.
    """
    model, variables = pretrained.load(folder)
    if not isinstance(model, EncoderDecoder):
        raise UserError(
            f"{folder} holds {type(model).__name__}: expected a network that "
            "translates, T5's or Marian's"
        )
    return model, variables


def ours(
    work: Workload, model: EncoderDecoder, variables: Variables
) -> tuple[Generator, int]:
    """Ours, compiled as one program, and its number of parameters."""
    variables = jax.device_put(variables)
    rows = len(work.source)
    length = work.new_tokens + 1

    @jax.jit
    def run_all(variables: Variables, source: jax.Array) -> jax.Array:
        step, state, reorder = model.decoding(variables, source, length)
        prompt = jnp.full((rows, 1), work.begin, jnp.int32)
        options: Any = {"max_length": length, "eos": NEVER, "pad": 0}
        if work.beam_size == 1:
            return generate(step, state, prompt, **options).tokens[:, 1:]
        beams = beam_search(
            step,
            state,
            prompt,
            beam_size=work.beam_size,
            reorder=reorder,
            **options,
        )
        return beams.tokens[:, 0, 1:]

    source = jnp.asarray(work.source, jnp.int32)
    num_params = sum(x.size for x in jax.tree.leaves(variables["params"]))
    return Generator(OURS, lambda: np.asarray(run_all(variables, source))), num_params


def bench(
    work: Workload,
    others: Sequence[Generator],
    repeats: int,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[tuple[Timing, ...], dict[str, float]]:
    """Timings, ours first, and what part of the tokens of each are ours, by name."""
    model, variables = network_of(work.folder)
    generator, num_params = ours(work, model, variables)
    made: dict[str, np.ndarray] = {}

    def contender(one: Generator) -> Contender:
        def step() -> None:
            made[one.name] = one.generate()

        return Contender(one.name, step, num_params, 0)

    contenders = [contender(one) for one in (generator, *others)]
    tokens = len(work.source) * work.new_tokens
    timings = race(contenders, tokens, repeats, warm_up=1, tell=tell)
    agreed = {one.name: float((made[one.name] == made[OURS]).mean()) for one in others}
    return timings, agreed


def main(
    folder: Annotated[str, tyro.conf.Positional] = "",
    rows: int = 8,
    source_length: int = 32,
    new_tokens: int = 64,
    beam_size: int = 1,
    repeats: int = 5,
    torch: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Time the generation of tokens from sources of random ones.

    Args:
      folder: In a public layout of a network that translates; none is for a fresh one
        of the size of opus-mt-en-de.
      rows: Sources translated at a time.
      source_length: Tokens of a source.
      new_tokens: Of a translation.
      beam_size: Hypotheses; 1 takes the likeliest token at each place.
      repeats: Timed runs of each, after one to warm up.
      torch: Beside transformers' `generate`, eager and compiled.
      as_json: Print the timings as JSON.
    """
    if min(rows, source_length, new_tokens, beam_size, repeats) < 1:
        raise UserError(
            "rows, source length, new tokens, beam size and repeats: at least 1"
        )
    start()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as made:
        if not folder:
            folder = made
            fresh(folder)
        model, _ = network_of(folder)
        # The first tokens and the last one are special.
        tokens = range(4, model.embedding.vocab_size - 1)
        source = np.random.default_rng(0).choice(tokens, (rows, source_length))
        # Both layouts begin with the padding.
        work = Workload(folder, source, new_tokens, beam_size, model.pad)
        peer: Any = find_peer(PEER) if torch else lambda _: ()
        others = peer(work)
        timings, agreed = bench(work, others, repeats, _tell)
    ratios = {
        timing.name: timings[0].examples_per_second / timing.examples_per_second
        for timing in timings[1:]
    }
    if as_json:
        record = {
            "timings": [asdict(timing) for timing in timings],
            "ratios": ratios,
            "agreed": agreed,
            "load": load,
        }
        print(json.dumps(record))
        return
    print(
        f"{timings[0].num_params:,} parameters, {rows} rows, {new_tokens} new tokens "
        f"each, beam of {beam_size}, {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}, load before it {load:.2f} of "
        f"{os.cpu_count()} cores"
    )
    for timing in timings:
        told = f"{timing.name}: {timing.examples_per_second:,.0f} tokens/s"
        if timing.name in ratios:
            told += (
                f"; ours is {ratios[timing.name]:.3f} x that, and "
                f"{agreed[timing.name]:.1%} of the tokens are the same"
            )
        print(told)


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    run(main)
