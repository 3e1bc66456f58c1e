from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.errors import UserError
from research.layers.alignment import Additive, General, LastState, LocalP
from research.layers.embeddings import TokenEmbedding
from research.layers.recurrent import GruCell, LstmCell, RecurrentStack, RnnCell
from research.models.recurrent import (
    AttentionalVector,
    Decoder,
    MaxoutReadout,
    RecurrentLanguageModel,
    RecurrentSeq2Seq,
    TanhBridge,
    zero_states,
)
from research.tasks.sequences import BEGIN, END, PAD
from research.tasks.translation import Translation
from tests.layers import slow, slow_recurrent
from tests.layers.test_alignment import additive, general

VOCAB, EMBED, HIDDEN = 11, 4, 5
SOURCE = jnp.array([[7, 8, 9, 4, 1], [4, 5, 1, 0, 0]])
TARGET = jnp.array([[3, 5, 6, 7], [3, 8, 9, 10]])
EMBEDDING = TokenEmbedding(VOCAB, EMBED)

CHO = GruCell(reset_first=True)
SUTSKEVER = RecurrentSeq2Seq(
    EMBEDDING, RecurrentStack(HIDDEN, 2), Decoder(RecurrentStack(HIDDEN, 2))
)
RNNENCDEC = RecurrentSeq2Seq(
    EMBEDDING,
    RecurrentStack(HIDDEN, cell=CHO),
    Decoder(
        RecurrentStack(HIDDEN, cell=CHO),
        alignment=LastState(),
        align_first=True,
        readout=MaxoutReadout(EMBED),
    ),
    tie_embeddings=True,
    logit_bias=True,
)
BAHDANAU = RecurrentSeq2Seq(
    EMBEDDING,
    RecurrentStack(HIDDEN, cell=CHO, num_bidirectional=1),
    Decoder(
        RecurrentStack(HIDDEN, cell=CHO),
        alignment=Additive(6),
        align_first=True,
        readout=MaxoutReadout(3),
        bridge=TanhBridge(),
    ),
    source_embedding=TokenEmbedding(12, 3),
)
LUONG = RecurrentSeq2Seq(
    EMBEDDING,
    RecurrentStack(HIDDEN, 2),
    Decoder(
        RecurrentStack(HIDDEN, 2),
        alignment=General(HIDDEN),
        attentional=AttentionalVector(7),
        input_feeding=True,
    ),
    reverse_source=True,
)
GNMT_V2 = RecurrentSeq2Seq(
    EMBEDDING,
    RecurrentStack(HIDDEN, 4, num_bidirectional=1, residual_from=2),
    Decoder(
        RecurrentStack(HIDDEN),
        alignment=Additive(HIDDEN, normed=True),
        input_feeding=True,
        upper=RecurrentStack(HIDDEN, 3, residual_from=1),
    ),
)
GNMT = replace(
    GNMT_V2,
    decoder=replace(GNMT_V2.decoder, align_first=True, input_feeding=False),
)
LOCAL = replace(
    LUONG,
    decoder=replace(LUONG.decoder, alignment=LocalP(General(HIDDEN), window=2, dim=3)),
)
SEQ2SEQ = {
    "sutskever": SUTSKEVER,
    "rnnencdec": RNNENCDEC,
    "bahdanau": BAHDANAU,
    "luong": LUONG,
    "local": LOCAL,
    "gnmt": GNMT,
    "gnmt_v2": GNMT_V2,
}


@pytest.mark.parametrize("model", SEQ2SEQ.values(), ids=SEQ2SEQ)
def test_one_step_at_a_time(model):
    """Equals teacher forcing, whatever padding, later tokens and other rows."""
    params = slow.random_params(model, SOURCE, TARGET)

    @slow.jit
    def run(params):
        variables = {"params": params}
        forced = model.apply(variables, SOURCE, TARGET)
        longer = jnp.pad(SOURCE, ((0, 0), (0, 2)))
        others = model.apply(variables, longer, TARGET.at[:, 2:].set(4))
        step, state, reorder = model.decoding(variables, SOURCE[::-1], 9)
        state = reorder(state, jnp.array([1, 1, 0, 0]))

        def one(state, token):
            # As in a search: from other rows of the same source.
            state = reorder(state, jnp.array([1, 0, 3, 2]))
            return step(state, jnp.repeat(token, 2))

        state, stepped = jax.lax.scan(one, state, TARGET.T)
        return forced, others, jnp.swapaxes(stepped, 0, 1), state.weights

    forced, others, stepped, weights = run(params)
    assert forced.shape == (2, 4, VOCAB) and forced.dtype == jnp.float32
    np.testing.assert_allclose(others[:, :2], forced[:, :2], atol=1e-5)
    assert (abs(others[:, 2:] - forced[:, 2:]).max(-1) > 1e-4).all()
    np.testing.assert_allclose(stepped, jnp.repeat(forced, 2, axis=0), atol=1e-5)
    if weights is not None and model is not LOCAL:
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
        assert (weights[2:, 3:] == 0).all()


def embed(params, tokens):
    return np.float64(params["embedding"])[np.asarray(tokens)]


def softmax(scores):
    weights = np.exp(scores)
    return weights / weights.sum()


def forced_logits(model):
    params = slow.random_params(model, SOURCE, TARGET)
    return params, slow.apply(model, params, SOURCE, TARGET)


def test_bahdanau():
    """App. A.2, one row and one step at a time."""
    params, logits = forced_logits(BAHDANAU)
    params = jax.tree.map(np.float64, params)
    zero, decoder = np.zeros(HIDDEN), params["decoder"]
    for b, length in enumerate((5, 3)):
        x = embed(params["source_embedding"], SOURCE[b])
        run = partial(slow_recurrent.layer, CHO, x=x, length=length, state=zero)
        forward, _ = run(params["encoder"]["layer_0"])
        backward, last = run(params["encoder"]["layer_0_reverse"], reverse=True)
        keys = np.concatenate([forward, backward], axis=-1)[:length]
        state = np.tanh(slow_recurrent.dense(decoder["bridge"]["layer_0_0"], last))
        for t, e in enumerate(embed(params["embedding"], TARGET[b])):
            scores = [additive(decoder["alignment"], state, k) for k in keys]
            context = softmax(scores) @ keys
            seen = np.concatenate([state, context, e])
            pairs = slow_recurrent.dense(decoder["readout"]["dense"], seen)
            expected = pairs.reshape(3, 2).max(-1) @ params["logits"]["kernel"]
            np.testing.assert_allclose(logits[b, t], expected, atol=1e-5)
            x = np.concatenate([e, context])
            state = slow_recurrent.step(CHO, decoder["layers"]["layer_0"], x, state)


def lstm_stack(params, x, states):
    """One step of a stack, and its new states."""
    after = []
    for index, state in enumerate(states):
        state = slow_recurrent.step(LstmCell(), params[f"layer_{index}"], x, state)
        after.append(state)
        x = state.hidden
    return x, after


def test_luong():
    """Eq. 5 and 8, input feeding, a source in reverse."""
    params, logits = forced_logits(LUONG)
    params = jax.tree.map(np.float64, params)
    decoder = params["decoder"]
    for b, length in enumerate((5, 3)):
        states = [slow_recurrent.zero(LstmCell(), HIDDEN)] * 2
        keys = []
        for e in embed(params["embedding"], SOURCE[b, :length])[::-1]:
            h, states = lstm_stack(params["encoder"], e, states)
            keys.append(h)
        vector = np.zeros(7)
        for t, e in enumerate(embed(params["embedding"], TARGET[b])):
            x = np.concatenate([e, vector])
            h, states = lstm_stack(decoder["layers"], x, states)
            weights = softmax([general(decoder["alignment"], h, k) for k in keys])
            seen = np.concatenate([weights @ keys, h])
            vector = np.tanh(
                slow_recurrent.dense(decoder["attentional"]["dense"], seen)
            )
            expected = vector @ params["logits"]["kernel"]
            np.testing.assert_allclose(logits[b, t], expected, atol=1e-5)


@pytest.mark.parametrize("first", [True, False], ids=["gnmt", "gnmt_v2"])
def test_gnmt(first):
    """What the bottom layer saw goes to all; the others add their input from the third
    on; the decoder starts from the encoder's states but the bottom's forward one."""
    model = GNMT if first else GNMT_V2
    # The alignment without what the other test of its formula has shown.
    model = replace(model, decoder=replace(model.decoder, alignment=Additive(HIDDEN)))
    params, logits = forced_logits(model)
    params = jax.tree.map(np.float64, params)
    encoder, decoder = params["encoder"], params["decoder"]
    zero = slow_recurrent.zero(LstmCell(), HIDDEN)
    for b, length in enumerate((5, 3)):
        run = partial(slow_recurrent.layer, LstmCell(), length=length, state=zero)
        x = embed(params["embedding"], SOURCE[b])
        forward, _ = run(encoder["layer_0"], x)
        backward, bottom = run(encoder["layer_0_reverse"], x, reverse=True)
        h, second = run(encoder["layer_1"], np.concatenate([forward, backward], -1))
        up, third = run(encoder["layer_2"], h)
        h = h + up
        up, fourth = run(encoder["layer_3"], h)
        keys, states = (h + up)[:length], [bottom, second, third, fourth]

        def look(query, keys=keys):
            scores = [additive(decoder["alignment"], query, k) for k in keys]
            return softmax(scores) @ keys

        context = np.zeros(HIDDEN)
        for t, e in enumerate(embed(params["embedding"], TARGET[b])):
            context = look(states[0].hidden) if first else context
            layers = [decoder["layers"]["layer_0"]]
            layers += [decoder["upper"][f"layer_{index}"] for index in range(3)]
            h = e
            for index, layer in enumerate(layers):
                state = slow_recurrent.step(
                    LstmCell(), layer, np.concatenate([h, context]), states[index]
                )
                states[index] = state
                h = state.hidden + (h if index > 1 else 0)
                if not index and not first:
                    context = look(h)
            expected = h @ params["logits"]["kernel"]
            np.testing.assert_allclose(logits[b, t], expected, atol=1e-5)


def shapes(model, *inputs):
    return jax.eval_shape(partial(model.init, jax.random.key(0)), *inputs)["params"]


def test_input_feeding_widens_the_decoders_input():
    narrow = replace(LUONG, decoder=replace(LUONG.decoder, input_feeding=False))
    for model, width in ((narrow, EMBED), (LUONG, EMBED + 7)):
        layers = shapes(model, SOURCE, TARGET)["decoder"]["layers"]
        assert layers["layer_0"]["input"]["kernel"].shape == (width, 4 * HIDDEN)
        assert layers["layer_1"]["input"]["kernel"].shape == (HIDDEN, 4 * HIDDEN)


def test_published_sizes():
    """384 million parameters (Sutskever et al. 2014, section 3.4), without biases, and
    66 million (Zaremba et al. 2014, section 4.1)."""
    model = RecurrentSeq2Seq(
        TokenEmbedding(80_000, 1000),
        RecurrentStack(1000, 4),
        Decoder(RecurrentStack(1000, 4)),
        source_embedding=TokenEmbedding(160_000, 1000),
        reverse_source=True,
    )
    leaves = jax.tree.leaves(shapes(model, SOURCE, TARGET))
    assert sum(leaf.size for leaf in leaves if leaf.ndim > 1) == 384_000_000
    large = RecurrentLanguageModel(
        TokenEmbedding(10_000, 1500), RecurrentStack(1500, 2)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(large, TARGET))) == (
        66_022_000
    )


def test_states_are_float32_whatever_the_rest():
    model = replace(
        LUONG,
        embedding=replace(EMBEDDING, dtype="bfloat16"),
        encoder=replace(LUONG.encoder, dtype="bfloat16"),
        decoder=replace(
            LUONG.decoder,
            layers=replace(LUONG.decoder.layers, dtype="bfloat16"),
            alignment=General(HIDDEN, dtype="bfloat16"),
        ),
    )

    def run():
        variables = model.init(jax.random.key(0), SOURCE, TARGET)
        state = model.apply(variables, SOURCE, method="encode")
        return model.apply(variables, state, TARGET, method="decode")

    state, logits = jax.eval_shape(run)
    assert logits.dtype == jnp.float32 and state.memory.keys.dtype == jnp.bfloat16
    states = [*jax.tree.leaves(state.layers), state.weights]
    assert {leaf.dtype for leaf in states} == {jnp.dtype("float32")}


def test_source_is_read_in_reverse():
    forward = replace(LUONG, reverse_source=False)
    params = slow.random_params(LUONG, SOURCE, TARGET)
    flipped = jnp.array([[1, 4, 9, 8, 7], [1, 5, 4, 0, 0]])
    np.testing.assert_array_equal(
        slow.apply(LUONG, params, SOURCE, TARGET),
        slow.apply(forward, params, flipped, TARGET),
    )


def test_packed_pairs_are_no_numbers():
    params = slow.random_params(SUTSKEVER, SOURCE, TARGET)
    segments = jnp.array([[1, 1, 1, 1, 1], [1, 1, 2, 0, 0]])
    ones = jnp.ones_like(TARGET)
    logits = slow.jit(
        lambda: SUTSKEVER.apply(
            {"params": params},
            SOURCE,
            TARGET,
            source_segments=segments,
            target_segments=ones,
        )
    )()
    assert np.isnan(logits).all((1, 2)).tolist() == [False, True]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"encoder": RecurrentStack(HIDDEN)}, "1 states for a decoder of 2 layers"),
        ({"encoder": RecurrentStack(HIDDEN + 1, 2)}, "the bridge gives"),
        ({"encoder": RecurrentStack(HIDDEN, 2, RnnCell())}, "the bridge gives"),
        ({"tie_embeddings": True}, "embed_dim=4.*has 5"),
        (
            {"decoder": Decoder(RecurrentStack(HIDDEN, 2), input_feeding=True)},
            "need what an alignment sees",
        ),
    ],
)
def test_what_does_not_fit_is_told(change, told):
    with pytest.raises(UserError, match=told):
        shapes(replace(SUTSKEVER, **change), SOURCE, TARGET)


def test_one_stack_cannot_stand_in_two_places():
    stack = RecurrentStack(HIDDEN, 2)
    for encoder, layers, upper in (
        (stack, stack, None),
        (stack, stack.clone(), stack),
        (stack.clone(), stack, stack),
    ):
        decoder = Decoder(layers, alignment=LastState(), upper=upper)
        with pytest.raises(UserError, match="are one stack, and would share all"):
            RecurrentSeq2Seq(EMBEDDING, encoder, decoder)
    with pytest.raises(UserError, match="are one stack"):
        replace(SUTSKEVER, encoder=SUTSKEVER.decoder.layers)
    apart = RecurrentSeq2Seq(EMBEDDING, stack, Decoder(stack.clone()))
    assert {"encoder", "decoder"} <= set(shapes(apart, SOURCE, TARGET))


def test_a_bridge_for_any_encoder():
    encoder = RecurrentStack(HIDDEN + 1, num_bidirectional=1)
    decoder = replace(LUONG.decoder, bridge=zero_states)
    model = replace(LUONG, encoder=encoder, decoder=decoder)
    params = slow.random_params(model, SOURCE, TARGET)
    start = slow.jit(lambda: model.apply({"params": params}, SOURCE, method="encode"))()
    assert len(start.layers) == 2
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(start.layers))


def test_learns_to_reverse():
    """A small RNNsearch overfits one batch, and a search finds what it has learnt."""
    hidden = 32
    gru = RecurrentStack(hidden, cell=GruCell())
    network = RecurrentSeq2Seq(
        TokenEmbedding(12, 16, dropout_rate=0.05),
        replace(gru, num_bidirectional=1),
        Decoder(
            gru,
            alignment=Additive(16),
            align_first=True,
            readout=MaxoutReadout(16),
            bridge=TanhBridge(),
        ),
        dropout_rate=0.05,
        tie_embeddings=True,
    )
    task = Translation(network, smoothing=0.0, beam_size=3, extra_length=2)
    rng = np.random.default_rng(0)
    words = [rng.integers(BEGIN + 1, 12, length).tolist() for length in (6, 5, 4, 6)]
    source = [w + [END] + [PAD] * (6 - len(w)) for w in words]
    target = [w[::-1] + [END] + [PAD] * (6 - len(w)) for w in words]
    batch = {"source": jnp.array(source), "target": jnp.array(target)}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train():
        params = task.init(jax.random.key(0), batch)["params"]

        def step(carry, rng):
            params, state = carry
            loss = lambda p: task.loss({"params": p}, batch, rng, True)[0]  # noqa: E731
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        carry = (params, optimizer.init(params))
        (params, _), losses = jax.lax.scan(
            step, carry, jax.random.split(jax.random.key(1), 150)
        )
        return params, losses

    params, losses = train()
    assert losses[0] > 2 and losses[-1] < 0.1, losses[::25]
    found = slow.jit(task.translate)({"params": params}, batch, jax.random.key(0))
    np.testing.assert_array_equal(found[:, :7], target)
    assert (found[:, 7:] == PAD).all()


def test_language_model():
    """Goes on from a state, keeps packed sequences apart, decodes, ties."""
    model = RecurrentLanguageModel(
        TokenEmbedding(VOCAB, HIDDEN),
        RecurrentStack(HIDDEN, 2, GruCell()),
        tie_embeddings=True,
    )
    tokens = jnp.concatenate([TARGET, TARGET[::-1]], axis=1)
    params = slow.random_params(model, tokens)
    assert set(params) == {"embedding", "body", "logit_bias"}

    @slow.jit
    def run(params):
        variables = {"params": params}
        whole = model.apply(variables, tokens)
        states, first = model.apply(variables, None, tokens[:, :3], method="run")
        _, second = model.apply(variables, states, tokens[:, 3:], method="run")
        segments = jnp.array([[1] * 4 + [2] * 4] * 2)
        packed = model.apply(variables, tokens, segments=segments, positions=segments)
        alone = model.apply(variables, tokens[:, 4:])
        step, state, reorder = model.decoding(variables, 2, 8)
        state = reorder(state, jnp.array([0, 1, 0]))
        _, stepped = jax.lax.scan(step, state, tokens[jnp.array([0, 1, 0])].T)
        return whole, jnp.concatenate([first, second], 1), packed, alone, stepped

    whole, halves, packed, alone, stepped = run(params)
    assert whole.dtype == jnp.float32 and whole.shape == (2, 8, VOCAB)
    close = partial(np.testing.assert_allclose, atol=1e-5)
    close(halves, whole)
    close(packed[:, :4], whole[:, :4])
    close(packed[:, 4:], alone)
    close(jnp.swapaxes(stepped, 0, 1), whole[jnp.array([0, 1, 0])])

    x = embed(params["embedding"], tokens[0])
    state = np.zeros(HIDDEN)
    for index in range(2):
        layer = params["body"][f"layer_{index}"]
        x, _ = slow_recurrent.layer(GruCell(), layer, x, 8, state)
    logits = x @ np.float64(params["embedding"]["embedding"]).T
    close(whole[0], logits + np.float64(params["logit_bias"]))


def test_a_language_model_does_not_see_the_future():
    body = RecurrentStack(HIDDEN, 2, num_bidirectional=1)
    with pytest.raises(UserError, match="num_bidirectional=1"):
        shapes(RecurrentLanguageModel(EMBEDDING, body), TARGET)
