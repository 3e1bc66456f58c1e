"""A Sparse Transformer on enwik8: Child et al. 2019, arXiv:1904.10509, section 7.2.

    python -m launch.train experiments/attention/sparse_enwik8.py

Needs the file enwik8 (mattmahoney.net/dc/enwik8.zip) at ~/data/twelvefold/enwik8.
Published: 0.99 bits a byte on the test set (0.992 +- 0.001 over three seeds), 0.55
seconds an iteration on 8 V100. Dense attention has 1.00 (softmax_enwik8), the strided
pattern 1.13 (strided_enwik8). Ours: ?
30 layers of width 512 with 8 heads read 12,288 bytes. A head sees its block of 128, and
32 positions of every block, which differ between heads (section 4.3).
Differs: learning rate and batch are not told for text: the former is CIFAR-10's, the
latter one row for each of their 8 GPUs, of which 73,000 make their 80 epochs. Computed
in float32, theirs in float16. There are 260 tokens, with padding and the like. Rows
that are evaluated do not overlap, where theirs begin with a context: of at least 6,144
bytes for 0.9952, of 12,160 for 0.9908 (Table 3).
Parameters: 95 million, as in the paper (Table 1).
"""

from functools import partial

import jax
from jaxtyping import Array, Float

from research.data.loader import Data
from research.data.packing import Windows
from research.data.text import TextFile
from research.data.tokenizers import Bytes
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers.attention import Attention
from research.layers.cores import Core, Sparse, fixed
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal, VarianceScaling, depth_scaled
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import LearnedGrid
from research.layers.residual import PreNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import LanguageModel
from research.tasks.language_modelling import LanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine

SOURCE = "arXiv:1904.10509, Table 2"
STRIDE = 128


def experiment(num_steps: int = 73_000, batch_size: int = 8) -> Experiment:
    """The published setting."""
    core = Sparse(fixed(STRIDE, 32, num_columns=4))
    return of(core, 0.99, num_steps, batch_size, num_params=94_953_472)


def of(
    core: Core, bits: float, num_steps: int, batch_size: int, num_params: int
) -> Experiment:
    """The setting that all siblings share, with another core and what it published."""
    length, dim, num_layers, dropout_rate = 12_288, 512, 30, 0.4
    normal = VarianceScaling(0.125**2, distribution="normal")
    out = depth_scaled(normal, num_layers)
    block = partial(
        TransformerBlock,
        mixer=partial(
            Attention, num_heads=8, core=core, kernel_init=normal, out_init=out
        ),
        mlp=partial(
            FeedForward,
            mlp_dim=4 * dim,
            activation=sigmoid_gelu,
            kernel_init=normal,
            out_init=out,
        ),
        residual=partial(PreNorm, dropout_rate=dropout_rate),
    )
    embedding = TokenEmbedding(
        Bytes().vocab_size,
        dim,
        positions=LearnedGrid(
            (length // STRIDE, STRIDE),
            embedding_init=Normal(0.125 * (2 * dim) ** -0.5),
        ),
        embedding_init=Normal(0.125 * dim**-0.5),
    )
    return Experiment(
        task=LanguageModelling(
            LanguageModel(
                embedding,
                Stack(num_layers, (block,), final_norm=LayerNorm, remat=True),
                tie_embeddings=False,
                logits_init=jax.nn.initializers.zeros,
            )
        ),
        data=enwik8(length, batch_size),
        optimizer=Adam(
            Cosine(3.5e-4, num_steps=num_steps, warmup_steps=5000),
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        num_steps=num_steps,
        evals={"validation": HeldOutLoss(split="validation", batch_size=8, every=1000)},
        offline_evals={"test": HeldOutLoss(split="test", batch_size=8)},
        checkpoints=Checkpoints(every=1000, keep_last=2),
        num_params=num_params,
        published=(Published("test/bits", bits, SOURCE),),
    )


def enwik8(length: int, batch_size: int, name: str = "enwik8") -> Data:
    """Rows of bytes: 90 million to train on, then 5 and 5; of text8, too."""

    def rows(start: float, end: float) -> Windows:
        text = TextFile(f"~/data/twelvefold/{name}", (start, end), unit="bytes")
        return Windows(text, Bytes(), length)

    return Data(
        train=rows(0.0, 0.9),
        eval={"validation": rows(0.9, 0.95), "test": rows(0.95, 1.0)},
        spec={"tokens": ((length,), "int32")},
        batch_size=batch_size,
    )


def sigmoid_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x sigmoid(1.702 x), which is near the Gaussian error linear unit."""
    return x * jax.nn.sigmoid(1.702 * x)
