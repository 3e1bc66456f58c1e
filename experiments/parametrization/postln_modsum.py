"""Post-LN, 48 layers deep, on sums of three numbers: it does not learn.

    python -m launch.train experiments/parametrization/postln_modsum.py

Which arrangements of a Transformer train when it is deep, without warm-up, on a task
for a laptop: y_i = x_i + x_{i-1} + x_{i-2} modulo 8 at every place of a sequence of 16,
causal. The published counterpart is Table 1 of Wang et al. 2022, arXiv:2203.00555:
WMT17 en-de, where Post-LN diverges at 50 layers a side. The siblings of this file are
this network with one change; 12 and 200 layers are `--with num_layers=12`.
Required beforehand, of a program of its own: a held-out loss that stays above 2.05
nats, chance being ln 8 = 2.079.
Ours: 2.082; with 12 layers 2.076.
"""

from functools import partial

from research.data.generated import ModularSum
from research.data.loader import Data
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Required
from research.layers import depth
from research.layers.attention import Attention
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal, Scaled, lecun
from research.layers.mlp import FeedForward
from research.layers.positions import Learned
from research.layers.residual import PostNorm
from research.layers.stack import Slot, Stack, TransformerBlock
from research.models.transformer import LanguageModel
from research.tasks.language_modelling import MaskedLanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Constant

LENGTH, VOCAB_SIZE = 16, 12
"""Of the sequences; 8 numbers and the ids that every vocabulary begins with."""

NUM_PARAMS = 611_072
"""Of 48 layers of width 32."""


def experiment(
    num_layers: int = 48,
    embed_dim: int = 32,
    num_steps: int = 160,
    batch_size: int = 64,
) -> Experiment:
    """A minute or two on a CPU core."""
    return of(
        num_layers,
        embed_dim,
        num_steps,
        batch_size,
        residual=PostNorm,
        required=Required("test/loss", above=2.05),
    )


def of(
    num_layers: int,
    embed_dim: int,
    num_steps: int,
    batch_size: int,
    *,
    residual: Slot,
    required: Required | None = None,
    gain: float = 1.0,
    query_gain: float = 1.0,
    embedding_gain: float = 1.0,
    out_norm: Slot | None = None,
    final_norm: Slot | None = None,
    num_params: int = NUM_PARAMS,
) -> Experiment:
    """The setting that all siblings share, with what they change.

    Args:
      num_layers: of attention and feed-forward.
      embed_dim: a multiple of four.
      num_steps: of Adam.
      batch_size: of new sequences each.
      residual: how branches join the stream.
      required: of the held-out loss of 48 layers; None is for nothing.
      gain: of values, outputs and feed-forward layers, over Xavier's.
      query_gain: of queries and keys.
      embedding_gain: of both tables, whose sum has a variance of one otherwise.
      out_norm: within each branch, before its last projection.
      final_norm: of what goes into the logits.
      num_params: of 48 layers of width 32.
    """
    table = Scaled(Normal(0.5**0.5), embedding_gain)
    block = partial(
        TransformerBlock,
        mixer=partial(
            Attention,
            num_heads=4,
            out_norm=out_norm,
            **depth.attention_inits(gain, query_gain),
        ),
        mlp=partial(
            FeedForward,
            mlp_dim=4 * embed_dim,
            out_norm=out_norm,
            **depth.mlp_inits(gain),
        ),
        residual=residual,
    )
    return Experiment(
        task=MaskedLanguageModelling(
            LanguageModel(
                embedding=TokenEmbedding(
                    VOCAB_SIZE,
                    embed_dim,
                    positions=Learned(LENGTH, embedding_init=table),
                    embedding_init=table,
                ),
                body=Stack(num_layers, (block,), final_norm=final_norm),
                tie_embeddings=False,
                logits_init=lecun(),
            )
        ),
        data=Data(
            train=ModularSum(10_000_000, LENGTH),
            eval={"test": ModularSum(1024, LENGTH, seed=1)},
            spec={"tokens": ((LENGTH,), "int32"), "targets": ((LENGTH,), "int32")},
            batch_size=batch_size,
        ),
        optimizer=Adam(Constant(2e-3)),
        num_steps=num_steps,
        seed=0,
        evals={"test": HeldOutLoss(split="test", batch_size=256)},
        checkpoints=Checkpoints(every=1000, keep_last=1),
        log_every=5,
        num_params=num_params,
        required=() if required is None else (required,),
    )
