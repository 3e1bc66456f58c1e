"""FLASH on enwik8, by the example of lucidrains/FLASH-pytorch.

    python -m launch.train experiments/flash/flash_enwik8.py

Needs the file enwik8 (mattmahoney.net/dc/enwik8.zip) at ~/data/twelvefold/enwik8.
Published: no figure; the example tells none. Ours: ?
Official setting: train.py of that repository: 8 units of width 512 (Hua et al. 2022,
arXiv:2202.10447) read 1,024 bytes, with chunks of 256 and a Laplacian in the place of
the squared ReLU, whose deviation from it is bounded; 100,000 steps of 16 rows, in four
parts, at a rate of 2e-4, clipped to a norm of 0.5.
Half of each unit's channels come a position late.
Differs: there logits of a unit have a relative bias, 32 of the 128 dimensions turn by
their positions, and codes of positions are added; here all dimensions turn, and nothing
else tells positions. Parts of a batch are summed up there. 260 tokens.
"""

from functools import partial

from experiments.attention.sparse_enwik8 import enwik8
from research.data.tokenizers import Bytes
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment
from research.layers.cores.mixed_chunk import MixedChunk
from research.layers.cores.pointwise import Pointwise, laplace
from research.layers.embeddings import TokenEmbedding
from research.layers.gated import GatedAttentionUnit
from research.layers.norms import LayerNorm, ScaleNorm
from research.layers.positions import Rotary
from research.layers.residual import PreNorm
from research.layers.shift import TokenShift
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import LanguageModel
from research.tasks.language_modelling import LanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Constant


def experiment(
    num_steps: int = 100_000, batch_size: int = 16, name: str = "enwik8"
) -> Experiment:
    """The example's setting; `name` may be text8, too."""
    length, dim = 1024, 512
    core = MixedChunk(256, Pointwise(laplace))
    block = partial(
        TransformerBlock,
        mixer=partial(
            TokenShift,
            mixer=partial(GatedAttentionUnit, core=core, rotary=Rotary()),
        ),
        mlp=None,
        residual=partial(PreNorm, norm=partial(ScaleNorm, unit=True)),
    )
    return Experiment(
        task=LanguageModelling(
            LanguageModel(
                TokenEmbedding(Bytes().vocab_size, dim),
                Stack(8, (block,), final_norm=LayerNorm),
            )
        ),
        data=enwik8(length, batch_size, name),
        optimizer=Adam(Constant(2e-4), clip_norm=0.5),
        num_steps=num_steps,
        num_microbatches=4,
        evals={
            "validation": HeldOutLoss(split="validation", batch_size=16, every=5000)
        },
        offline_evals={"test": HeldOutLoss(split="test", batch_size=16)},
        checkpoints=Checkpoints(every=5000, keep_last=2),
        num_params=13_271_048,
    )
