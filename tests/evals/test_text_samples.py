from dataclasses import dataclass

import jax.numpy as jnp
import pytest

from research.data.tokenizers import Bytes
from research.decoding.sampling import Greedy, Sample
from research.decoding.search import generate
from research.evals.text_samples import TextSamples
from tests.evals.fakes import make_context

TOKENIZER = Bytes()
A, D = TOKENIZER.encode("ad")


@dataclass(frozen=True)
class Letters:
    """After each letter the next or, less likely, the one after it; after d the end.

    It knows one id more than the tokenizer.
    """

    def generate(self, variables, rng, prompt, num, choose, lengths=None):
        size = TOKENIZER.vocab_size + 1

        def step(state, token):
            vocab = jnp.arange(size)[None, :]
            after = vocab - token[:, None]
            logits = jnp.where(after == 1, 1.0, jnp.where(after == 2, 0.0, -jnp.inf))
            over = (token >= D)[:, None]
            return state, jnp.where(over, jnp.where(vocab == 1, 0.0, -jnp.inf), logits)

        prompt = jnp.pad(prompt, ((0, 0), (1, 0)), constant_values=A - 1)
        length = prompt.shape[1] + num
        lengths = None if lengths is None else 1 + lengths
        found = generate(
            step,
            (),
            prompt,
            lengths,
            max_length=length,
            eos=1,
            choose=choose,
            rng=rng,
            limits=None if lengths is None else lengths + num,
        )
        return found.tokens[:, 1:]


def run(folder, **kwargs):
    evaluate = TextSamples(TOKENIZER, **kwargs)
    values = evaluate(Letters(), {}, make_context(folder))
    return values, (folder / "00000070.txt").read_text()


def test_continuations_are_written(tmp_path):
    values, text = run(tmp_path / "new", num=3, length=9, choose=Greedy())
    assert text == "".join(f"--- {i}\nabcd\n" for i in range(3))
    # Four letters and the end, of fifteen tokens five different ones.
    assert values == {"length": 5, "distinct": pytest.approx(1 / 3)}


def test_prompts_of_several_lengths_take_turns(tmp_path):
    prompts = ("ab", "", "xyzabc")
    values, text = run(tmp_path, prompt=prompts, num=4, length=2, choose=Greedy())
    assert text.splitlines()[1::2] == ["abcd", "ab", "xyzabcd", "abcd"]
    # Two letters each, but one and the end of the third: a, b, c, d and the end.
    assert values == {"length": 2, "distinct": pytest.approx(5 / 8)}


def test_each_draws_its_own_after_the_prompt(tmp_path):
    _, text = run(tmp_path, prompt="xa", num=20, length=2, choose=Sample())
    lines = text.splitlines()[1::2]
    assert len(lines) == 20 and all(line.startswith("xa") for line in lines)
    assert {line[2:] for line in lines} == {"bc", "bd", "cd", "ce"}
    _, again = run(tmp_path, prompt="xa", num=20, length=2, choose=Sample())
    assert again == text
