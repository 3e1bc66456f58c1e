"""Softmax attention copies a word: the task that tells attention's cores apart.

    python -m launch.train experiments/attention/softmax_copy.py

A word of 24 letters out of 10, a separator, and the word again, of which every letter
is to be predicted: what the copy task of Katharopoulos et al. 2020, arXiv:2006.16236,
section 4.1, asks of a Transformer, at a size that a CPU core learns in a minute. Two
causal layers of width 64 with 4 heads, 104,192 parameters. The siblings of this file
are this network with another core. Chance is an accuracy of 0.1.
Required beforehand: an accuracy of at least 0.99.
Ours: 1.0
"""

from functools import partial

from research.data.generated import CopyTask
from research.data.loader import Data
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Required
from research.layers.attention import Attention
from research.layers.cores import Core, Softmax
from research.layers.embeddings import TokenEmbedding
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import Learned
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import LanguageModel
from research.tasks.language_modelling import LanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine

LENGTH = 24
NUM_PARAMS = 104_192


def experiment(num_steps: int = 400, batch_size: int = 64) -> Experiment:
    """About a minute on a CPU core."""
    return of(Softmax(), 0.99, num_steps, batch_size)


def of(
    core: Core,
    above: float,
    num_steps: int,
    batch_size: int,
    *,
    below: float = float("inf"),
    learning_rate: float = 1e-3,
    num_params: int = NUM_PARAMS,
) -> Experiment:
    """The setting that all siblings share, with another core and its requirement.

    Args:
      core: of the attention in both layers.
      above, below: what the held-out accuracy has to lie between.
      num_steps: of Adam.
      batch_size: of new words each.
      learning_rate: at its peak.
      num_params: with those of the core.
    """
    train = CopyTask(num=num_steps * batch_size, length=LENGTH)
    block = partial(
        TransformerBlock,
        mixer=partial(Attention, num_heads=4, core=core),
        mlp=partial(FeedForward, mlp_dim=256),
    )
    return Experiment(
        task=LanguageModelling(
            LanguageModel(
                embedding=TokenEmbedding(
                    train.vocab_size, 64, positions=Learned(2 + 2 * LENGTH)
                ),
                body=Stack(2, (block,), final_norm=LayerNorm),
            )
        ),
        data=Data(
            train=train,
            eval={"test": CopyTask(num=512, length=LENGTH, seed=1)},
            spec={
                "tokens": ((2 + 2 * LENGTH,), "int32"),
                "weights": ((2 + 2 * LENGTH,), "float32"),
            },
            batch_size=batch_size,
        ),
        optimizer=Adam(
            Cosine(
                learning_rate,
                num_steps=num_steps,
                warmup_steps=100,
                end=learning_rate / 10,
            ),
            b2=0.98,
        ),
        num_steps=num_steps,
        evals={"test": HeldOutLoss(split="test", batch_size=128)},
        checkpoints=Checkpoints(every=0, keep_last=1),
        log_every=50,
        num_params=num_params,
        required=(Required("test/accuracy", above=above, below=below),),
    )
