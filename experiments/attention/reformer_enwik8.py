"""Reformer on enwik8: Kitaev et al. 2020, arXiv:2001.04451.

    python -m launch.train experiments/attention/reformer_enwik8.py

Needs the file enwik8 (mattmahoney.net/dc/enwik8.zip) at ~/data/twelvefold/enwik8.
Published: 1.05 bits a byte with 12 layers after further tuning, 1.19 after 20,000 steps
with a dropout of 0.1 (section 5). The paper does not tell how 1.05 was tuned. Ours: ?
Official setting: google/trax, supervised/configs/reformer_enwik8.gin, with the sizes
that it has for less memory; it tells no result. Rows of 65,536 bytes; of every four
layers the third attends by hashing, with 512 buckets, chunks of 256 and two rounds, the
others to what is near.
Differs: one stream of ordinary branches that are computed again for the gradient, where
theirs has two that can be reversed, joined before the logits. Its near layers see their
own chunk of 128 and the one before it, here as many positions in the mean, 192, for
each query. Dropout draws for every position, theirs once a row. Tokens' vectors start
with variance one. A batch of 8 is one row for each of 8 devices.
"""

from functools import partial

import jax

from experiments.attention.sparse_enwik8 import enwik8
from research.data.tokenizers import Bytes
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers.attention import Attention
from research.layers.cores import LSH, Core, Sparse, local
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal, xavier
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import LearnedGrid
from research.layers.residual import PreNorm
from research.layers.stack import Slot, Stack, TransformerBlock
from research.models.transformer import LanguageModel
from research.tasks.language_modelling import LanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import InverseSqrt


def experiment(num_steps: int = 100_000, batch_size: int = 8) -> Experiment:
    """The official setting."""
    length, dropout_rate = 65_536, 0.2

    def block(core: Core) -> Slot:
        return partial(
            TransformerBlock,
            mixer=partial(
                Attention,
                num_heads=8,
                head_dim=64,
                core=core,
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

    near = block(Sparse(local(192), dropout_rate=dropout_rate))
    hashed = block(LSH(512, chunk_size=256, num_rounds=2, dropout_rate=dropout_rate))
    return Experiment(
        task=LanguageModelling(
            LanguageModel(
                TokenEmbedding(
                    Bytes().vocab_size,
                    768,
                    positions=LearnedGrid(
                        (128, 512), dims=(256, 512), embedding_init=Normal(1.0)
                    ),
                    dropout_rate=dropout_rate,
                    embedding_init=Normal(1.0),
                ),
                Stack(
                    12,
                    (near, near, hashed, near),
                    final_norm=LayerNorm,
                    dropout_rate=dropout_rate,
                    remat=True,
                ),
                tie_embeddings=False,
                logits_init=xavier(),
            )
        ),
        data=enwik8(length, batch_size),
        optimizer=Adam(
            InverseSqrt(0.03125 * 2000**-0.5, warmup_steps=2000), b2=0.98, eps=1e-9
        ),
        num_steps=num_steps,
        evals={"validation": HeldOutLoss(split="validation", batch_size=8, every=5000)},
        offline_evals={"test": HeldOutLoss(split="test", batch_size=8)},
        checkpoints=Checkpoints(every=5000, keep_last=2),
        num_params=56_209_920,
        published=(Published("test/bits", 1.05, "arXiv:2001.04451, section 5"),),
    )
