"""A Transformer on the One Billion Word Benchmark: the example of google/flax.

    python -m launch.prepare experiments/attention/transformer_lm1b.py
    python -m launch.train experiments/attention/transformer_lm1b.py

Published: a loss of 3.127 nats a subword on the test split, after 13 h 18 min on a TPU
v3-8 (examples/lm1b/README.md, run of August 2021). Ours: ?
Official setting: google/flax, examples/lm1b, configs/default.py: 6 layers of width 512,
norms before the branches, 30,000 subwords, sentences packed into rows of 128, 32 rows
for each of 8 cores, a rate of 0.05 / sqrt(step) after a warm-up of 1000 steps.
Differs: the subwords are made from 1 % of the sentences, theirs from ten million
characters. Sentences of more than 128 subwords are left out in evaluation too, theirs
has those up to 512. Logits have no bias, and biases and norms no weight decay. Computed
in float32, theirs in bfloat16. Perplexities of other subwords are not comparable.
"""

from functools import partial

import jax

from research.data.loader import Data
from research.data.packing import NoLonger, Packed, Transformed
from research.data.sequences import AppendEos, Tokenize
from research.data.sources import Source, Tfds
from research.data.stored import Stored
from research.data.subwords import SentencePiece, Training
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers.attention import Attention
from research.layers.cores import Softmax
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal, xavier
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import Sinusoidal
from research.layers.residual import PreNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import LanguageModel
from research.tasks.language_modelling import LanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import InverseSqrt


def experiment(num_steps: int = 500_000, batch_size: int = 256) -> Experiment:
    """The official setting."""
    length, vocab_size, dropout_rate = 128, 30_000, 0.1
    tokenizer = SentencePiece(
        f"~/data/twelvefold/lm1b_unigram{vocab_size}.model",
        Training(Tfds("lm1b", "train[:1%]"), vocab_size),
    )

    def sentences(split: str) -> Source:
        steps = (Tokenize(tokenizer), AppendEos())
        return NoLonger(Transformed(Tfds("lm1b", split), steps), length)

    block = partial(
        TransformerBlock,
        mixer=partial(
            Attention,
            num_heads=8,
            core=Softmax(dropout_rate=dropout_rate),
            use_bias=False,
            kernel_init=xavier(),
        ),
        mlp=partial(
            FeedForward,
            mlp_dim=2048,
            activation=jax.nn.relu,
            dropout_rate=dropout_rate,
            kernel_init=xavier(),
        ),
        residual=partial(PreNorm, dropout_rate=dropout_rate),
    )
    return Experiment(
        task=LanguageModelling(
            LanguageModel(
                TokenEmbedding(
                    vocab_size,
                    512,
                    positions=Sinusoidal(interleaved=False, endpoint=True),
                    dropout_rate=dropout_rate,
                    embedding_init=Normal(1.0),
                ),
                Stack(6, (block,), final_norm=LayerNorm),
                tie_embeddings=False,
                logits_init=xavier(),
            )
        ),
        data=Data(
            train=Stored(
                Packed(sentences("train"), length),
                f"~/data/twelvefold/lm1b_unigram{vocab_size}_rows{length}",
            ),
            eval={"test": Packed(sentences("test"), length, most=1)},
            spec={
                name: ((length,), "int32")
                for name in ("tokens", "segments", "positions")
            },
            batch_size=batch_size,
            num_workers=4,
        ),
        optimizer=Adam(
            InverseSqrt(0.05 * 1000**-0.5, warmup_steps=1000),
            b2=0.98,
            eps=1e-9,
            weight_decay=0.1,
        ),
        num_steps=num_steps,
        offline_evals={"test": HeldOutLoss(split="test", batch_size=256)},
        checkpoints=Checkpoints(every=10_000, keep_last=2),
        num_params=49_623_040,
        published=(
            Published("test/loss", 3.127, "google/flax, examples/lm1b/README.md"),
        ),
    )
