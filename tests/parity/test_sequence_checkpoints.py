"""Sequence models against transformers', live, folders going both ways.

All in float32. Sources are padded and of odd lengths.
"""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.marian.modeling_marian import (
    MarianSinusoidalPositionalEmbedding,
)
from transformers.models.t5.modeling_t5 import T5Attention

from research import pretrained
from research.decoding.sampling import Forbid, Greedy, NoRepeatNgram
from research.decoding.scoring import Power, no_better_now
from research.decoding.search import beam_search, generate
from research.layers.positions import Sinusoidal, relative_bucket
from research.pretrained import bert
from research.tasks.translation import Translation
from tests.layers import slow

TOLERANCE = 1e-5  # of the largest element of the output
VOCAB = 23

T5 = dict(
    vocab_size=VOCAB,
    d_model=12,
    d_kv=4,
    d_ff=20,
    num_heads=5,
    decoder_start_token_id=0,
)
SMALL_BUCKETS = dict(
    relative_attention_num_buckets=6, relative_attention_max_distance=7
)
MARIAN = dict(
    vocab_size=VOCAB,
    d_model=12,
    encoder_attention_heads=2,
    decoder_attention_heads=3,
    encoder_ffn_dim=20,
    decoder_ffn_dim=16,
    max_position_embeddings=512,
    pad_token_id=VOCAB - 1,
    decoder_start_token_id=VOCAB - 1,
    forced_eos_token_id=None,
)
APART = dict(share_encoder_decoder_embeddings=False, decoder_vocab_size=VOCAB + 2)
BERT = dict(
    vocab_size=VOCAB,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=16,
    type_vocab_size=3,
)

CASES = {
    "t5-plain": lambda: T5ForConditionalGeneration(
        T5Config(
            **T5,
            **SMALL_BUCKETS,
            num_layers=3,
            num_decoder_layers=2,
            layer_norm_epsilon=1e-2,
        )
    ),
    "t5-gated": lambda: with_head(
        T5ForConditionalGeneration(
            T5Config(
                **T5,
                num_layers=1,
                num_decoder_layers=2,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
            )
        )
    ),
    "t5-gated-tied": lambda: T5ForConditionalGeneration(
        T5Config(
            **T5,
            num_layers=1,
            feed_forward_proj="gated-silu",
            tie_word_embeddings=False,
        )
    ),
    "marian": lambda: MarianMTModel(
        MarianConfig(
            **MARIAN,
            encoder_layers=2,
            decoder_layers=1,
            activation_function="swish",
            scale_embedding=True,
        )
    ),
    "marian-apart": lambda: MarianMTModel(
        MarianConfig(**MARIAN, **APART, encoder_layers=1, decoder_layers=2)
    ),
    "marian-untied": lambda: MarianMTModel(
        MarianConfig(
            **MARIAN,
            **APART,
            encoder_layers=1,
            decoder_layers=1,
            tie_word_embeddings=False,
            activation_function="relu",
        )
    ),
    "bert": lambda: BertModel(BertConfig(**BERT, layer_norm_eps=1e-3)),
    "bert-no-pooler": lambda: BertModel(
        BertConfig(**BERT, hidden_act="relu"), add_pooling_layer=False
    ),
    "bert-masked": lambda: BertForMaskedLM(BertConfig(**BERT, hidden_act="gelu_new")),
    "bert-classes": lambda: BertForSequenceClassification(
        BertConfig(**BERT, num_labels=4)
    ),
}


def with_head(model):
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(VOCAB, 12))
    return model


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """More only wait for each other, on models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@lru_cache
def reference(name):
    """Theirs, every number of it random, and the end of a sequence not too rare."""
    torch.manual_seed(0)
    model = CASES[name]().eval()
    # So small that the epsilon of a norm, which no config of Marian tells, matters.
    scale = 0.3 if name.startswith("marian-") else 1.0
    with torch.no_grad():
        for path, leaf in model.named_parameters():
            if leaf.requires_grad:  # all but sinusoids
                std = 0.5 if leaf.ndim > 1 else 0.1
                is_scale = leaf.ndim == 1 and path.endswith("weight")
                leaf.copy_(std * torch.randn_like(leaf) + scale * is_scale)
        if name.startswith("marian"):
            model.final_logits_bias.normal_(std=0.3)
            model.final_logits_bias[0, model.config.eos_token_id] += 1
        if name == "t5-gated":
            model.lm_head.weight[model.config.eos_token_id] *= 1.5
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of each case, written by their library when it is first asked for."""

    @lru_cache
    def folder(name):
        path = tmp_path_factory.mktemp(name)
        reference(name).save_pretrained(path)
        return path

    return folder


def padded(pad, *lengths):
    tokens = np.random.default_rng(5).integers(3, VOCAB - 1, (len(lengths), 7))
    for row, length in enumerate(lengths):
        tokens[row, length:] = pad
    return tokens


def inputs(config):
    """Sources, targets or types of their tokens, and which tokens are no padding."""
    source = padded(config.pad_token_id, 7, 4, 1)
    is_bert = config.model_type == "bert"
    others = np.random.default_rng(2).integers(0, 3 if is_bert else VOCAB, (3, 5))
    if is_bert:
        others = np.tile(others, 2)[:, :7]
    return source, others, source != config.pad_token_id


def theirs(model):
    """What ours computes, and of a `BertModel` with a pooler its vectors."""
    source, others, valid = map(torch.tensor, inputs(model.config))
    given = dict(input_ids=source, attention_mask=valid.long())
    if model.config.model_type == "bert":
        given |= dict(token_type_ids=others)
    else:
        given |= dict(decoder_input_ids=others, use_cache=False)
    with torch.no_grad():
        out = model(**given)
    vectors = out.get("last_hidden_state")
    for name in ("logits", "prediction_logits", "pooler_output"):
        if out.get(name) is not None:
            return out[name].numpy(), vectors
    return vectors.numpy(), None


def ours(model, variables, config, method=None):
    source, others, _ = map(jnp.asarray, inputs(config))
    if config.model_type == "bert":
        run = partial(model.apply, types=others, method=method)
        return np.asarray(slow.jit(run)(variables, source))
    return np.asarray(slow.jit(model.apply)(variables, source, others))


def assert_close(ours, theirs, config):
    """Equal to rounding, but where the vectors of padding would be."""
    assert ours.shape == theirs.shape
    if theirs.shape[:2] == inputs(config)[2].shape:
        ours, theirs = (out[inputs(config)[2]] for out in (ours, theirs))
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize("name", CASES)
def test_both_ways(folders, tmp_path, name):
    there, config = reference(name), reference(name).config
    bare = {"add_pooling_layer": False} if name == "bert-no-pooler" else {}
    load = partial(type(there).from_pretrained, output_loading_info=True, **bare)
    model, variables = pretrained.load(str(folders(name)))
    expected, vectors = theirs(there)
    assert_close(ours(model, variables, config), expected, config)
    if vectors is not None:
        method = lambda model, *args, **types: model.encoder(*args, **types)  # noqa: E731
        assert_close(ours(model, variables, config, method), vectors.numpy(), config)

    pretrained.save(str(tmp_path), model, variables)
    again, told = load(tmp_path)
    assert not any(told.values()), told
    written, state = again.state_dict(), there.state_dict()
    assert written.keys() == state.keys()
    for leaf, value in state.items():
        np.testing.assert_array_equal(written[leaf], value, err_msg=leaf)
    np.testing.assert_array_equal(theirs(again.eval())[0], expected)


def test_what_pretraining_adds_is_left_aside(tmp_path):
    """A file with next-sentence prediction, which is read as the masked model."""
    torch.manual_seed(0)
    there = BertForPreTraining(BertConfig(**BERT)).eval()
    there.save_pretrained(tmp_path)
    model, variables = pretrained.load(str(tmp_path))
    expected, _ = theirs(there)
    assert_close(ours(model, variables, there.config), expected, there.config)
    # Or as what was pretrained, with its pooler.
    model, variables = bert.load(str(tmp_path), architecture="BertModel")
    expected, _ = theirs(there.bert)
    assert_close(ours(model, variables, there.config), expected, there.config)


def test_files_in_parts_of_half_precision(tmp_path):
    """bfloat16, which NumPy does not know, in several files."""
    there = CASES["t5-gated-tied"]().to(torch.bfloat16)
    there.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model, variables = pretrained.load(str(tmp_path))
    pretrained.save(str(tmp_path / "again"), model, variables)
    written = load_file(tmp_path / "again" / "model.safetensors")
    state = there.float().state_dict()
    for leaf, value in written.items():
        np.testing.assert_array_equal(value, state[leaf], err_msg=leaf)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", ["t5-gated", "marian"])
def test_generation_token_for_token(folders, name, num_beams):
    """Ours remembers keys and values; their T5 with a deeper decoder cannot."""
    there = reference(name)
    pad, eos = there.config.pad_token_id, there.config.eos_token_id
    source = padded(pad, 7, 4, 1, 6, 2, 5)
    with torch.no_grad():
        expected = there.generate(
            input_ids=torch.tensor(source),
            attention_mask=torch.tensor(source != pad).long(),
            max_new_tokens=11,
            num_beams=num_beams,
            length_penalty=0.7,
            do_sample=False,
            use_cache=name != "t5-gated",
            suppress_tokens=[pad],
            no_repeat_ngram_size=2,
        ).numpy()

    model, variables = pretrained.load(str(folders(name)))
    begin = jnp.full((len(source), 1), pad)
    filters = (Forbid((pad,)), NoRepeatNgram(2))

    @slow.jit
    def decode(variables, source):
        step, state, reorder = model.decoding(variables, source, 12)
        options = dict(max_length=12, eos=eos, pad=pad)
        if num_beams == 1:
            choose = Greedy(filters)
            return generate(step, state, begin, choose=choose, **options).tokens
        search = dict(beam_size=num_beams, length_penalty=Power(0.7), filters=filters)
        search |= dict(stop=no_better_now, reorder=reorder)
        return beam_search(step, state, begin, **search, **options).tokens[:, 0]

    tokens = np.asarray(decode(variables, jnp.asarray(source)))
    lengths = set()
    for row, wanted in zip(tokens, expected, strict=True):
        length = (wanted == eos).argmax() + 1 if eos in wanted else len(wanted)
        np.testing.assert_array_equal(row[:length], wanted[:length])
        assert (row[length:] == pad).all()
        lengths.add(length)
    assert len(lengths) > 2 and len(set(map(tuple, tokens))) > 3


def test_the_loss_of_fine_tuning(folders):
    """Of targets that end with token 0 and are padded with another, and its gradient.

    Theirs leaves out what is labelled -100.
    """
    there = reference("marian")
    pad, eos = there.config.pad_token_id, there.config.eos_token_id
    source, target = padded(pad, 7, 4, 1), padded(pad, 5, 2, 7)
    for row, length in enumerate((5, 2, 7)):
        target[row, length - 1] = eos
    there.zero_grad()
    labels = torch.tensor(np.where(target == pad, -100, target))
    given = dict(input_ids=torch.tensor(source), labels=labels)
    loss = there(**given, attention_mask=given["input_ids"] != pad).loss
    loss.backward()

    model, variables = pretrained.load(str(folders("marian")))
    task = Translation(model, smoothing=0.0, begin=pad, end=eos)
    batch = {"source": jnp.asarray(source), "target": jnp.asarray(target)}

    @slow.jit
    def run(params, batch):
        loss = lambda p: task.loss({"params": p}, batch, jax.random.key(0), False)  # noqa: E731
        (value, (metrics, _)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value, metrics["loss"][1], grads["embedding"]["embedding"]

    value, count, gradient = run(variables["params"], batch)
    assert eos == 0 and pad > 0 and count == 5 + 2 + 7
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    expected = there.model.shared.weight.grad.numpy()
    there.zero_grad()
    # Theirs has no gradient of padding's vector; what stands before a target is that.
    ours, expected = (np.delete(g, pad, axis=0) for g in (gradient, expected))
    np.testing.assert_allclose(ours, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("num_buckets", [32, 8])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_of_distances(bidirectional, num_buckets):
    """Also compiled: the borders are where a logarithm is a whole number."""
    distances = np.arange(-600, 601)[None]
    settings = dict(bidirectional=bidirectional, num_buckets=num_buckets)
    expected = T5Attention._relative_position_bucket(
        torch.tensor(distances), **settings, max_distance=128
    )
    bucket = partial(relative_bucket, **settings, max_distance=128)
    np.testing.assert_array_equal(jax.jit(bucket)(distances), expected)


def test_sinusoids_at_true_size():
    length, dim = 512, 512
    table = MarianSinusoidalPositionalEmbedding(length, dim).create_weight().numpy()
    ours = Sinusoidal(interleaved=False)(jnp.arange(length)[None], dim)[0]
    # Angles up to 511 in float32, theirs in float64.
    np.testing.assert_allclose(ours, table, atol=512 * 2**-24)
