"""FLASH on C4, filling in subwords that are hidden: Hua et al. 2022, arXiv:2202.10447.

    python -m launch.prepare experiments/flash/flash_c4.py
    python -m launch.train experiments/flash/flash_c4.py

The units of flash_wiki40b, which see both ways. Of 15 % of the subwords it says what
they were: 80 % of these are hidden, 10 % another one, and 10 % as they were (Devlin et
al. 2019, arXiv:1810.04805, section 3.1).
Published: the quality of an improved Transformer (transformer_c4) in up to 4.8 times
less training time (abstract); of perplexities there is no figure here, for want of the
paper's own tables. Ours: ?
262,144 subwords a step, in rows of 512 to 8,192: `--with length=8192 --with
batch_size=32`.
Differs: learning rate, warm-up, decay and steps are such as are told of the paper, not
read in it; norms, vocabulary and positions are those of flash_wiki40b, the rows those
of softmax_c4 of the family attention: 4 % of the corpus, here read about five times.
"""

from functools import partial

from experiments.attention import softmax_c4
from research.data.loader import Data
from research.data.sequences import RandomMask
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment
from research.layers.cores import Core
from research.layers.cores.mixed_chunk import MixedChunk
from research.layers.embeddings import TokenEmbedding
from research.layers.gated import GatedAttentionUnit
from research.layers.initializers import Normal
from research.layers.norms import LayerNorm, ScaleNorm
from research.layers.positions import Rotary
from research.layers.residual import PreNorm
from research.layers.stack import Slot, Stack, TransformerBlock
from research.models.transformer import Encoder, MaskedLanguageModel
from research.tasks.language_modelling import MaskedLanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Linear


def experiment(
    num_steps: int = 125_000, batch_size: int = 512, length: int = 512
) -> Experiment:
    """The base size."""
    return of(units(MixedChunk(chunk_size=256)), 24, num_steps, batch_size, length)


def units(core: Core) -> Slot:
    """A gated attention unit with a norm of a single scale before it."""
    return partial(
        TransformerBlock,
        mixer=partial(GatedAttentionUnit, core=core, rotary=Rotary()),
        mlp=None,
        residual=partial(PreNorm, norm=partial(ScaleNorm, unit=True)),
    )


def of(
    block: Slot,
    num_layers: int,
    num_steps: int,
    batch_size: int,
    length: int,
    num_params: int = 112_615_448,
) -> Experiment:
    """The setting that all siblings share, with other blocks."""
    hidden, dim = 31_999, 768
    train, validation = softmax_c4.rows(softmax_c4.subwords(hidden), length)
    masks = (RandomMask(mask=hidden, vocab_size=hidden),)
    kinds = {"tokens": "int32", "targets": "int32", "weights": "float32"}
    return Experiment(
        task=MaskedLanguageModelling(
            MaskedLanguageModel(
                Encoder(
                    TokenEmbedding(hidden + 1, dim),
                    Stack(num_layers, (block,), final_norm=LayerNorm, remat=True),
                ),
                norm=LayerNorm,
                kernel_init=Normal(0.02),
            )
        ),
        data=Data(
            train=train,
            eval={"validation": validation},
            spec={name: ((length,), kind) for name, kind in kinds.items()},
            batch_size=batch_size,
            transforms=masks,
            eval_transforms=masks,
            num_workers=4,
        ),
        optimizer=Adam(
            Linear(7e-4, num_steps=num_steps, warmup_steps=10_000),
            eps=1e-6,
            weight_decay=0.01,
        ),
        num_steps=num_steps,
        evals={
            "validation": HeldOutLoss(split="validation", batch_size=32, every=5000)
        },
        checkpoints=Checkpoints(every=5000, keep_last=2),
        num_params=num_params,
    )
