"""Transformers: causality, padding, packing, cached decoding, and what is tied."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.attention import Attention
from research.layers.embeddings import LevelEmbedding, TokenEmbedding
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import Alibi, Learned, RelativeBias, Rotary, Sinusoidal
from research.layers.residual import PreNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import (
    Encoder,
    EncoderDecoder,
    LanguageModel,
    MaskedLanguageModel,
    SequenceClassifier,
)
from tests.layers import slow

VOCAB, DIM = 11, 8
TOKENS = jax.random.randint(jax.random.key(0), (2, 6), 4, VOCAB)
SOURCE = jax.random.randint(jax.random.key(1), (2, 5), 4, VOCAB).at[0, 3:].set(0)

BLOCK = partial(
    TransformerBlock,
    mixer=partial(Attention, num_heads=2),
    mlp=partial(FeedForward, mlp_dim=12, gated=True, dropout_rate=0.1),
)
STACK = Stack(num_layers=2, blocks=(BLOCK,), final_norm=LayerNorm)
EMBEDDING = TokenEmbedding(
    VOCAB,
    DIM,
    positions=Sinusoidal(),
    embedding_init=jax.nn.initializers.normal(1.0),
)
MODEL = LanguageModel(EMBEDDING, STACK)
SEQ2SEQ = EncoderDecoder(
    EMBEDDING,
    STACK,
    replace(STACK, blocks=(partial(BLOCK, cross=partial(Attention, num_heads=4)),)),
    logit_bias=True,
)


def with_body(**settings) -> LanguageModel:
    return replace(MODEL, body=replace(STACK, **settings))


def rotary() -> LanguageModel:
    block = partial(BLOCK, mixer=partial(Attention, num_heads=2, rotary=Rotary()))
    return replace(
        MODEL,
        embedding=replace(EMBEDDING, positions=None),
        body=replace(STACK, blocks=(block,)),
    )


MODELS = {
    "sinusoidal": MODEL,
    "learned": replace(MODEL, embedding=replace(EMBEDDING, positions=Learned(6))),
    "rotary": rotary(),
    "relative": with_body(bias=RelativeBias(2, bidirectional=False)),
    "alibi": with_body(bias=Alibi(2)),
    "two kinds": with_body(
        blocks=(BLOCK, partial(BLOCK, parallel=True)), unroll=2, num_layers=4
    ),
    "untied": replace(MODEL, tie_embeddings=False),
    "levels": replace(MODEL, embedding=LevelEmbedding(DIM, num_levels=VOCAB - 4)),
}


@pytest.fixture(params=MODELS, scope="module")
def model(request):
    network = MODELS[request.param]
    variables = {"params": slow.random_params(network, TOKENS)}
    run = slow.jit(network.apply)
    return network, variables, run, run(variables, TOKENS)


def changed_at(tokens, t):
    """Another token there."""
    return tokens.at[:, t].set((tokens[:, t] - 3) % 7 + 4)


def test_logits_of_a_token_do_not_see_later_ones(model):
    _, variables, run, before = model
    for t in (1, 5):
        after = run(variables, changed_at(TOKENS, t))
        np.testing.assert_array_equal(before[:, :t], after[:, :t])
        assert float(abs(before[:, t:] - after[:, t:]).max()) > 1e-3


def test_cached_decoding_is_the_whole_at_once(model):
    network, variables, _, whole = model
    step, state, take = network.decoding(variables, *TOKENS.shape)
    decode = slow.jit(lambda state: jax.lax.scan(step, state, TOKENS.T))
    state, logits = decode(state)
    np.testing.assert_allclose(logits.swapaxes(0, 1), whole, atol=1e-4)
    taken = take(state, jnp.array([1, 1, 0]))
    keys = taken["body"]["layers"]["block_0"]["mixer"]["core"]["key"]
    assert keys.shape[1] == 3
    np.testing.assert_array_equal(keys[:, 0], keys[:, 1])
    assert not np.array_equal(keys[:, 0], keys[:, 2])


def test_packed_sequences_do_not_see_each_other(model):
    """And what comes first in a row is as if it were alone."""
    _, variables, run, whole = model
    packed = run(
        variables,
        TOKENS[:, :3].reshape(1, 6),
        segments=jnp.array([[1, 1, 1, 2, 2, 2]]),
        positions=jnp.array([[0, 1, 2, 0, 1, 2]]),
    )
    np.testing.assert_allclose(packed.reshape(2, 3, -1), whole[:, :3], atol=1e-4)


def test_a_scanned_stack_is_its_blocks_one_by_one():
    block = BLOCK()
    x = jax.random.normal(jax.random.key(3), (2, 6, DIM))
    stack = replace(STACK, final_norm=None)
    variables = {"params": slow.random_params(stack, x)}

    @slow.jit
    def one_by_one(variables, x):
        for i in range(2):
            layer = variables["params"]["layers"]["block_0"]
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], layer)
            x = block.apply({"params": layer}, x)
        return x

    whole = slow.jit(stack.apply)(variables, x)
    np.testing.assert_allclose(whole, one_by_one(variables, x), atol=1e-6)


def test_rematerialized_gradients_are_the_same():
    variables = {"params": slow.random_params(MODEL, TOKENS)}

    def gradient(network):
        def loss(params, rng):
            logits = network.apply(params, TOKENS, train=True, rngs={"dropout": rng})
            return jnp.sum(logits**2)

        return slow.jit(jax.grad(loss))(variables, slow.key(0))

    pairs = zip(
        jax.tree.leaves(gradient(MODEL)),
        jax.tree.leaves(gradient(with_body(remat=True))),
        strict=True,
    )
    for plain, again in pairs:
        np.testing.assert_allclose(plain, again, rtol=1e-5, atol=1e-5)


def test_blocks_have_to_divide_the_layers():
    with pytest.raises(UserError, match="num_layers=3 is no multiple of the 2 blocks"):
        slow.jit(with_body(blocks=(BLOCK, BLOCK), num_layers=3).init)(
            jax.random.key(0), TOKENS
        )


def test_cross_attention_needs_a_context():
    stack = replace(SEQ2SEQ.decoder, num_layers=1)
    with pytest.raises(UserError, match="needs a context"):
        stack.init(jax.random.key(0), jnp.zeros((1, 2, DIM)))


# Encoder and decoder


@pytest.fixture(scope="module")
def seq2seq():
    variables = {"params": slow.random_params(SEQ2SEQ, SOURCE, TOKENS)}
    run = slow.jit(SEQ2SEQ.apply)
    return variables, run, run(variables, SOURCE, TOKENS)


def test_source_padding_does_not_matter(seq2seq):
    variables, run, logits = seq2seq
    longer = jnp.pad(SOURCE, ((0, 0), (0, 4)))
    again = run(variables, longer, TOKENS)
    np.testing.assert_allclose(again, logits, atol=1e-5)


def test_the_source_matters_and_later_targets_do_not(seq2seq):
    variables, run, logits = seq2seq
    other = run(variables, SOURCE.at[:, 1].set(4), TOKENS)
    assert float(abs(other - logits).max()) > 1e-3
    later = run(variables, SOURCE, TOKENS.at[:, 4].set(5))
    np.testing.assert_array_equal(later[:, :4], logits[:, :4])


def test_cached_decoding_of_a_source(seq2seq):
    variables, run, logits = seq2seq
    step, state, take = SEQ2SEQ.decoding(variables, SOURCE, 6)
    # As a search begins: with two hypotheses for each source.
    state = take(state, jnp.array([0, 0, 1, 1]))

    tokens = jnp.repeat(TOKENS, 2, axis=0)
    _, decoded = slow.jit(lambda state: jax.lax.scan(step, state, tokens.T))(state)
    expected = jnp.repeat(logits, 2, axis=0)
    np.testing.assert_allclose(decoded.swapaxes(0, 1), expected, atol=1e-4)


def test_packed_pairs_do_not_see_each_other(seq2seq):
    variables, run, _ = seq2seq
    whole = jnp.stack([SOURCE[0, :3], SOURCE[1, :3]])
    short = run(variables, jnp.pad(whole, ((0, 0), (0, 2))), TOKENS)[:, :3]
    segments = jnp.array([[1, 1, 1, 2, 2, 2]])
    positions = jnp.array([[0, 1, 2, 0, 1, 2]])
    packed = run(
        variables,
        whole.reshape(1, 6),
        TOKENS[:, :3].reshape(1, 6),
        source_segments=segments,
        target_segments=segments,
        source_positions=positions,
        target_positions=positions,
    )
    np.testing.assert_allclose(packed.reshape(short.shape), short, atol=1e-4)


def test_a_source_may_have_a_table_of_its_own(seq2seq):
    _, _, logits = seq2seq
    source_embedding = replace(EMBEDDING, vocab_size=20)
    network = replace(SEQ2SEQ, source_embedding=source_embedding, tie_embeddings=False)
    shapes = jax.eval_shape(network.init, jax.random.key(0), SOURCE, TOKENS)["params"]
    assert shapes["source_embedding"]["embedding"].shape == (20, DIM)
    assert shapes["logits"]["kernel"].shape == (DIM, VOCAB)
    assert logits.shape == (2, 6, VOCAB)


def test_one_stack_cannot_be_both_sides():
    with pytest.raises(UserError, match="would share all parameters"):
        EncoderDecoder(EMBEDDING, STACK, STACK)
    EncoderDecoder(EMBEDDING, STACK, STACK.clone())


# Encoders


def test_an_encoder_sees_both_ways_but_no_padding():
    encoder = Encoder(EMBEDDING, STACK)
    variables = {"params": slow.random_params(encoder, SOURCE)}
    run = slow.jit(encoder.apply)
    x = run(variables, SOURCE)
    longer = run(variables, jnp.pad(SOURCE, ((0, 0), (0, 3))))
    np.testing.assert_allclose(longer[0, :3], x[0, :3], atol=1e-5)
    later = run(variables, SOURCE.at[1, 4].set(SOURCE[1, 4] % 7 + 4))
    assert float(abs(later[1, 0] - x[1, 0]).max()) > 1e-4


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_pairs_are_classified_by_both(pooling):
    classifier = SequenceClassifier(
        Encoder(EMBEDDING, STACK), 3, pooling=pooling, hidden_dim=4, pairs=True
    )
    variables = {"params": slow.random_params(classifier, TOKENS)}
    assert variables["params"]["dense"]["kernel"].shape == (4 * DIM, 4)
    run = slow.jit(classifier.apply)
    logits = run(variables, TOKENS)
    assert logits.shape == (2, 3)
    for t in (0, 5):
        other = run(variables, changed_at(TOKENS, t))
        assert float(abs(other - logits).min()) > 1e-5


def test_masked_logits_are_of_every_token():
    network = MaskedLanguageModel(Encoder(EMBEDDING, STACK), norm=LayerNorm)
    variables = {"params": slow.random_params(network, SOURCE)}
    assert set(variables["params"]) == {"encoder", "dense", "norm", "logit_bias"}
    assert slow.jit(network.apply)(variables, SOURCE).shape == (2, 5, VOCAB)


def test_dropping_branches_differs_between_layers():
    """A scan splits the generator: like layers must not draw alike."""
    residual = partial(PreNorm, dropout_rate=0.5)
    layer = partial(TransformerBlock, mixer=_Ones, mlp=None, residual=residual)
    stack = Stack(num_layers=2, blocks=(layer,))
    x = jnp.zeros((1, 400, 1))
    params = slow.random_params(stack, x)
    run = slow.jit(partial(stack.apply, train=True))
    out = run({"params": params}, x, rngs={"dropout": slow.key(0)})
    # 0, 2 or 4 with a quarter, a half and a quarter; never 2 if both drew alike.
    assert 0.4 < float(jnp.mean(out == 2.0)) < 0.6


def _Ones(name):
    del name
    return lambda h, **_: jnp.ones_like(h)
