"""Decoding against transformers' `generate`, token for token, on its own logits.

Tiny random models of theirs play the step function, called back into PyTorch with
everything so far. The end of sequence is made probable, so that rows end at different
times. Padding is not 0: `generate` takes that for none and pads with the end.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MarianConfig, MarianMTModel
from transformers.generation import logits_process

from research.decoding import sampling
from research.decoding.sampling import Greedy, NoRepeatNgram, RepetitionPenalty
from research.decoding.scoring import Power, full, no_better_ever, no_better_now
from research.decoding.search import beam_search, generate

VOCAB, EOS, PAD, BEGIN = 13, 1, 2, 3
MAX_NEW = 12
STOPS = {True: full, False: no_better_now, "never": no_better_ever}
SOURCE = np.array(
    [[5, 6, 7, 8, 9, 1], [4, 12, 1, 2, 2, 2], [11, 0, 9, 1, 2, 2], [8, 8, 1, 2, 2, 2]]
)
PROMPTS = {
    "gpt2": np.array([[5, 6, 7], [4, 12, 3], [11, 0, 9], [8, 8, 8]]),
    "marian": np.full((4, 1), BEGIN),
}


# The seed, the scale of the last layer, and how much the end is favoured: found to let
# rows end everywhere.
CHOSEN = {"gpt2": (3, 0.25, 0.8), "marian": (2, 0.4, 2.0)}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """More only wait for each other, on models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@lru_cache
def model_of(name):
    seed, std, bonus = CHOSEN[name]
    torch.manual_seed(seed)
    special = dict(bos_token_id=BEGIN, eos_token_id=EOS, pad_token_id=PAD)
    if name == "gpt2":
        sizes = dict(n_positions=32, n_embd=16, n_layer=2, n_head=2)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **sizes, **special))
    else:
        sides = {
            f"{side}_{part}": size
            for side in ("encoder", "decoder")
            for part, size in {"layers": 2, "attention_heads": 2, "ffn_dim": 32}.items()
        }
        config = MarianConfig(
            vocab_size=VOCAB,
            d_model=16,
            max_position_embeddings=32,
            init_std=0.3,
            decoder_start_token_id=BEGIN,
            forced_eos_token_id=None,
            **sides,
            **special,
        )
        model = MarianMTModel(config)
    # Not tied to the embedding, or the model would repeat its input for ever.
    model.lm_head = torch.nn.Linear(16, VOCAB)
    torch.nn.init.normal_(model.lm_head.weight, std=std)
    torch.nn.init.zeros_(model.lm_head.bias)
    with torch.no_grad():
        model.lm_head.bias[EOS] = bonus
    return model.eval()


def step_of(name):
    """The state is all that the model is given anew: the source and the tokens."""
    model = model_of(name)

    def called(tokens, position, source):
        tokens = torch.tensor(np.asarray(tokens)[:, : int(position) + 1]).long()
        with torch.no_grad():
            if name == "gpt2":
                out = model(input_ids=tokens)
            else:
                source = torch.tensor(np.asarray(source)).long()
                out = model(
                    input_ids=source,
                    attention_mask=source != PAD,
                    decoder_input_ids=tokens,
                )
        return out.logits[:, -1].numpy()

    def step(state, token):
        position = state["position"]
        tokens = state["tokens"].at[:, position].set(token)
        shape = jax.ShapeDtypeStruct((len(token), VOCAB), jnp.float32)
        logits = jax.pure_callback(called, shape, tokens, position, state["source"])
        return {**state, "tokens": tokens, "position": position + 1}, logits

    return step


def ours(name, search, prompt=None, lengths=None, **kwargs):
    prompt = PROMPTS[name] if prompt is None else prompt
    length = prompt.shape[1] + MAX_NEW
    state = {
        "source": jnp.asarray(SOURCE),
        "tokens": jnp.zeros((len(SOURCE), length), jnp.int32),
        "position": jnp.int32(0),
    }
    kwargs = dict(max_length=length, eos=EOS, pad=PAD, **kwargs)
    step = step_of(name)
    return jax.jit(
        lambda state, prompt: search(step, state, prompt, lengths, **kwargs)
    )(state, jnp.asarray(prompt))


def theirs(name, prompt=None, **kwargs):
    """Sequences, padded to full length, and scores."""
    prompt = PROMPTS[name] if prompt is None else prompt
    if name == "gpt2":
        inputs = {"input_ids": torch.tensor(prompt)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    else:
        inputs = {"input_ids": torch.tensor(SOURCE)}
        inputs["attention_mask"] = (inputs["input_ids"] != PAD).long()
    found = model_of(name).generate(
        **inputs,
        max_new_tokens=MAX_NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **kwargs,
    )
    tokens = found.sequences.numpy()
    missing = prompt.shape[1] + MAX_NEW - tokens.shape[1]
    tokens = np.pad(tokens, ((0, 0), (0, missing)), constant_values=PAD)
    return tokens, getattr(found, "sequences_scores", None)


@pytest.mark.parametrize("name", ["gpt2", "marian"])
@pytest.mark.parametrize(
    "size, penalty, early",
    [
        (4, 0.0, "never"),
        (4, 1.0, True),
        (3, 0.8, False),
        (3, 0.6, "never"),
        (2, -1.0, False),
    ],
)
def test_beam_search(name, size, penalty, early):
    beams = ours(
        name,
        beam_search,
        beam_size=size,
        length_penalty=Power(penalty),
        stop=STOPS[early],
    )
    tokens, scores = theirs(
        name,
        num_beams=size,
        num_return_sequences=size,
        length_penalty=penalty,
        early_stopping=early,
    )
    np.testing.assert_array_equal(beams.tokens.reshape(tokens.shape), tokens)
    np.testing.assert_allclose(beams.scores.reshape(-1), scores, rtol=1e-5)
    assert len(np.unique(beams.lengths)) > 1


@pytest.mark.parametrize("name", ["gpt2", "marian"])
def test_beam_search_with_filters(name):
    """They see log-probabilities, and all of the row's tokens."""
    filters = (RepetitionPenalty(1.3), NoRepeatNgram(2))
    beams = ours(name, beam_search, beam_size=3, filters=filters, stop=full)
    tokens, scores = theirs(
        name,
        num_beams=3,
        num_return_sequences=3,
        length_penalty=0.0,
        early_stopping=True,
        repetition_penalty=1.3,
        no_repeat_ngram_size=2,
    )
    np.testing.assert_array_equal(beams.tokens.reshape(tokens.shape), tokens)
    np.testing.assert_allclose(beams.scores.reshape(-1), scores, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "marian"])
@pytest.mark.parametrize("penalty", [None, 1.5])
def test_greedy(name, penalty):
    filters = () if penalty is None else (RepetitionPenalty(penalty),)
    found = ours(name, generate, choose=Greedy(filters))
    tokens, _ = theirs(name, num_beams=1, repetition_penalty=penalty)
    np.testing.assert_array_equal(found.tokens, tokens)
    assert len(np.unique(found.lengths)) > 1


@pytest.mark.parametrize("size", [1, 3])
def test_prompts_of_different_lengths(size):
    """Each row as if it were alone, where theirs pad on the left."""
    prompts = [[5], [4, 12, 3], [11, 0, 9, 4], [8, 8]]
    padded = np.array([row + [PAD] * (4 - len(row)) for row in prompts])
    lengths = jnp.array([len(row) for row in prompts])
    limits = lengths + MAX_NEW
    if size == 1:
        found = ours("gpt2", generate, padded, lengths, limits=limits).tokens
    else:
        kwargs = dict(beam_size=size, length_penalty=Power(1.0), limits=limits)
        found = ours("gpt2", beam_search, padded, lengths, **kwargs).tokens[:, 0]
    for row, prompt in enumerate(prompts):
        tokens, _ = theirs(
            "gpt2",
            np.array([prompt]),
            num_beams=size,
            length_penalty=1.0,
            early_stopping="never" if size > 1 else None,
        )
        np.testing.assert_array_equal(found[row, : tokens.shape[1]], tokens[0])
        assert np.all(found[row, tokens.shape[1] :] == PAD)


@pytest.mark.parametrize(
    "mine, other",
    [
        (sampling.Temperature(0.7), logits_process.TemperatureLogitsWarper(0.7)),
        (sampling.TopK(5), logits_process.TopKLogitsWarper(5)),
        (sampling.TopP(0.8), logits_process.TopPLogitsWarper(0.8)),
        (sampling.MinP(0.1), logits_process.MinPLogitsWarper(0.1)),
        (RepetitionPenalty(1.7), logits_process.RepetitionPenaltyLogitsProcessor(1.7)),
        (NoRepeatNgram(2), logits_process.NoRepeatNGramLogitsProcessor(2)),
        (NoRepeatNgram(3), logits_process.NoRepeatNGramLogitsProcessor(3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_filters(mine, other):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (64, VOCAB)).astype(np.float32)
    tokens = rng.integers(0, 5, (64, 12)).astype(np.int32)
    count = 9
    expected = other(torch.tensor(tokens[:, :count]).long(), torch.tensor(logits))
    after = mine(jnp.asarray(logits), jnp.asarray(tokens), count)
    np.testing.assert_allclose(after, expected.numpy(), rtol=1e-6)
    assert (after != logits).any()
