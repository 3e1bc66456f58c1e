"""Tasks over tokens: what is known, what counts, what is drawn."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.decoding.sampling import Greedy, NoRepeatNgram
from research.layers.attention import Attention
from research.layers.cores import Linear
from research.layers.cores.mixed_chunk import MixedChunk
from research.layers.embeddings import TokenEmbedding
from research.layers.gated import GatedAttentionUnit
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import Rotary, Sinusoidal
from research.layers.recurrent import RecurrentStack
from research.layers.stack import Stack, TransformerBlock
from research.losses import token_cross_entropy
from research.models.recurrent import RecurrentLanguageModel
from research.models.transformer import (
    Encoder,
    EncoderDecoder,
    LanguageModel,
    MaskedLanguageModel,
    SequenceClassifier,
)
from research.tasks.language_modelling import (
    LanguageModelling,
    MaskedLanguageModelling,
)
from research.tasks.sequence_classification import SequenceClassification
from research.tasks.sequences import BEGIN, shift, token_weights
from research.tasks.translation import Translation
from tests.layers import slow

VOCAB, DIM = 12, 16
RNG = jax.random.key(0)
BLOCK = partial(
    TransformerBlock,
    mixer=partial(Attention, num_heads=2),
    mlp=partial(FeedForward, mlp_dim=32),
)
STACK = Stack(num_layers=1, blocks=(BLOCK,), final_norm=LayerNorm)
EMBEDDING = TokenEmbedding(
    VOCAB,
    DIM,
    positions=Sinusoidal(),
    embedding_init=jax.nn.initializers.normal(0.3),
)
DECODER = replace(
    STACK, blocks=(partial(BLOCK, cross=partial(Attention, num_heads=2)),)
)
TOKENS = jnp.array([[7, 5, 9, 4, 1, 0], [6, 8, 4, 11, 10, 1]])
SOURCE = jnp.array([[4, 9, 5, 7, 0], [10, 11, 4, 8, 6]])


def with_mixer(mixer):
    """A causal network with another mixer of positions."""
    return LanguageModel(
        EMBEDDING, replace(STACK, blocks=(partial(BLOCK, mixer=mixer),))
    )


TASKS = {
    "language": (
        LanguageModelling(LanguageModel(EMBEDDING, STACK)),
        {"tokens": TOKENS},
    ),
    "masked": (
        MaskedLanguageModelling(
            MaskedLanguageModel(Encoder(EMBEDDING, STACK), norm=LayerNorm)
        ),
        {"tokens": TOKENS.at[:, 1].set(3), "targets": TOKENS, "weights": TOKENS == 5},
    ),
    "translation": (
        Translation(
            EncoderDecoder(EMBEDDING, STACK, DECODER), extra_length=2, smoothing=0.0
        ),
        {"source": SOURCE, "target": TOKENS},
    ),
    "classification": (
        SequenceClassification(SequenceClassifier(Encoder(EMBEDDING, STACK), 3)),
        {"tokens": TOKENS, "label": jnp.array([2, 0])},
    ),
}


@cache
def fit(name, num_steps=60):
    task, batch = TASKS[name]
    optimizer = optax.adam(1e-2)

    @jax.jit
    def run(variables):
        def step(carry, rng):
            params, state = carry
            loss = partial(task.loss, batch=batch, rng=rng, train=True)
            (value, _), grads = jax.value_and_grad(
                lambda p: loss({"params": p}), has_aux=True
            )(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        params = variables["params"]
        carry = (params, optimizer.init(params))
        rngs = jax.random.split(RNG, num_steps)
        (params, _), losses = jax.lax.scan(step, carry, rngs)
        return {"params": params}, losses

    return run(slow.jit(task.init)(RNG, batch))


@pytest.fixture(scope="module", params=TASKS)
def fitted(request):
    return *TASKS[request.param], *fit(request.param)


def test_every_task_fits_one_batch(fitted):
    task, _, _, losses = fitted
    # Nothing tells which of the two texts begins.
    chance = 2 * np.log(2) / 11 if isinstance(task, LanguageModelling) else 0.0
    assert losses[0] > chance + 0.5
    assert losses[-1] < chance + 0.05


def test_rows_that_stand_for_no_example_do_not_count(fitted):
    task, batch, variables, _ = fitted
    variables = jax.tree.map(lambda leaf: 0.5 * leaf, variables)  # as yet unsure

    @slow.jit
    def metrics(batch):
        return task.loss(variables, batch, RNG, False)[1][0]

    one = metrics({name: value[:1] for name, value in batch.items()})
    masked = metrics({**batch, "mask": jnp.array([1.0, 0.0])})
    for name, (total, count) in one.items():
        assert masked[name][1] == count
        np.testing.assert_allclose(masked[name][0], total, rtol=1e-5)


def test_a_fitted_model_says_what_it_was_told():
    task, _ = TASKS["language"]
    variables, _ = fit("language")
    prompt = TOKENS[:, :1]
    drawn = jax.jit(lambda v: task.generate(v, RNG, prompt, 5, Greedy()))(variables)
    np.testing.assert_array_equal(drawn[1], TOKENS[1])
    np.testing.assert_array_equal(drawn[0, :5], TOKENS[0, :5])
    ending = replace(task, end=1)
    drawn = jax.jit(lambda v: ending.generate(v, RNG, prompt, 5, Greedy()))(variables)
    np.testing.assert_array_equal(drawn, TOKENS)


WRITERS = {
    "softmax": LanguageModel(EMBEDDING, STACK),
    "linear": with_mixer(partial(Attention, num_heads=2, core=Linear(chunk_size=4))),
    "flash": with_mixer(
        partial(
            GatedAttentionUnit,
            core=MixedChunk(chunk_size=3),
            key_dim=8,
            rotary=Rotary(),
            scale_init=jax.nn.initializers.ones,
            kernel_init=jax.nn.initializers.normal(0.5),
        )
    ),
    "recurrent": RecurrentLanguageModel(
        replace(EMBEDDING, positions=None), RecurrentStack(8)
    ),
}


@pytest.mark.parametrize("network", WRITERS.values(), ids=WRITERS)
def test_prompts_of_several_lengths_go_on_as_each_would_alone(network):
    """Token for token, whatever fills the shorter ones up; none is said twice."""
    task = LanguageModelling(network)
    variables = {"params": slow.random_params(network, TOKENS)}
    lengths, num = (5, 0, 2), 5
    prompt = jax.random.randint(jax.random.key(7), (3, 5), 4, VOCAB)

    @slow.jit
    def write(variables, lengths):
        choose = Greedy((NoRepeatNgram(1),))
        return task.generate(variables, RNG, prompt, num, choose, lengths)

    together = np.asarray(write(variables, jnp.array(lengths)))
    assert together.shape == (3, 5 + num)
    step, start, _ = network.decoding(variables, 1, 1 + 5 + num)
    step = slow.jit(step)
    for row, length in enumerate(lengths):
        state, said = start, [BEGIN]
        while len(said) <= length + num:
            state, logits = step(state, jnp.array(said[-1:]))
            unsaid = np.asarray(logits[0]).copy()
            unsaid[said] = -np.inf
            here = len(said) - 1
            said.append(int(prompt[row, here] if here < length else unsaid.argmax()))
        assert together[row].tolist() == said[1:] + [0] * (5 - length)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_fitted_model_translates(beam_size):
    task, batch = TASKS["translation"]
    variables, _ = fit("translation")
    task = replace(task, beam_size=beam_size)
    said = jax.jit(lambda v: task.translate(v, batch, RNG))(variables)
    assert said.shape == (2, 5 + 2)  # a source of five, and two more at the most
    np.testing.assert_array_equal(said[:, :6], TOKENS)
    assert not said[:, 6:].any()


def test_padding_is_what_the_network_says():
    """With 0 and 11 in each other's place nothing changes but their names."""
    task, batch = TASKS["translation"]
    variables, _ = fit("translation")
    names = jnp.arange(VOCAB).at[jnp.array([0, 11])].set(jnp.array([11, 0]))
    other = replace(task, network=replace(task.network, pad=11))
    table = variables["params"]["embedding"]["embedding"][names]
    renamed = {"params": {**variables["params"], "embedding": {"embedding": table}}}
    run = slow.jit(
        lambda task, variables, batch: (
            task.loss(variables, batch, RNG, False)[1][0],
            task.translate(variables, batch, RNG),
        ),
        static_argnums=0,
    )
    expected, said = run(task, variables, batch)
    ours, again = run(other, renamed, jax.tree.map(lambda x: names[x], batch))
    assert ours["loss"][1] == 11
    for name, pair in expected.items():
        np.testing.assert_allclose(ours[name], pair, rtol=1e-5)
    np.testing.assert_array_equal(names[again], said)


def test_packed_padding_is_what_is_in_no_segment():
    tokens, segments = jnp.array([[5, 0, 1, 0]]), jnp.array([[1, 1, 1, 0]])
    np.testing.assert_array_equal(token_weights(tokens, {}, segments), [[1, 1, 1, 0]])
    np.testing.assert_array_equal(token_weights(tokens, {}, pad=1), [[1, 1, 0, 1]])


def test_shifting_begins_anew_with_each_segment():
    tokens = jnp.array([[5, 6, 7, 8, 0]])
    np.testing.assert_array_equal(shift(tokens, 3), [[3, 5, 6, 7, 8]])
    segments = jnp.array([[1, 1, 2, 2, 0]])
    np.testing.assert_array_equal(shift(tokens, 3, segments), [[3, 5, 3, 7, 3]])


def test_packed_rows_count_like_single_ones():
    task, _ = TASKS["translation"]
    variables = slow.jit(task.init)(RNG, {"source": SOURCE, "target": TOKENS})
    segments = jnp.repeat(jnp.array([[1, 2]]), 6, axis=1)
    places = jnp.tile(jnp.arange(6), 2)[None]
    source = jnp.pad(SOURCE, ((0, 0), (0, 1)))
    packed = {
        "source": source.reshape(1, -1),
        "target": TOKENS.reshape(1, -1),
        "source_segments": jnp.where(source.reshape(1, -1) > 0, segments, 0),
        "target_segments": jnp.where(TOKENS.reshape(1, -1) > 0, segments, 0),
        "source_positions": places,
        "target_positions": places,
    }
    run = slow.jit(lambda batch: task.loss(variables, batch, RNG, False)[1][0])
    ours, apart = run(packed), run({"source": SOURCE, "target": TOKENS})
    for name, pair in apart.items():
        np.testing.assert_allclose(ours[name], pair, rtol=1e-5)


def test_smoothing_is_in_training_alone():
    task, batch = TASKS["translation"]
    smooth = replace(task, smoothing=0.3)
    variables = slow.jit(task.init)(RNG, batch)

    def run(task, train):
        return slow.jit(lambda: task.loss(variables, batch, RNG, train)[1][0])()

    np.testing.assert_allclose(
        run(smooth, False)["loss"], run(task, True)["loss"], rtol=1e-5
    )
    smoothed = run(smooth, True)
    assert abs(smoothed["loss"][0] - run(task, True)["loss"][0]) > 1e-2
    bits = run(task, True)["loss"][0] / np.log(2)
    np.testing.assert_allclose(smoothed["bits"][0], bits, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_of_tokens_is_its_definition(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5)) * 3
    tokens = rng.integers(0, 5, (2, 3))
    target = np.full((2, 3, 5), smoothing / 5)
    np.put_along_axis(target, tokens[..., None], 1 - smoothing + smoothing / 5, axis=-1)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ours = token_cross_entropy(jnp.asarray(logits), jnp.asarray(tokens), smoothing)
    np.testing.assert_allclose(ours, -(target * log_probs).sum(-1), rtol=1e-5)
