"""DDPM on CelebA-HQ 256x256, as in Song et al. 2021, arXiv:2011.13456.

    python -m launch.train experiments/score_sde/vp_ddpm_celebahq256.py

vp_ddpm_cifar10 with six levels, for images of 256 pixels.
Published: no number in the paper's tables.
Official setting: yang-song/score_sde, configs/vp/ddpm/celebahq.py and the defaults it
starts from, at commit 0acb9e0e. Every value below is theirs. Ours: ?
Differs: their file asks for images of 256 pixels but names the TFRecords of 1024; here
image files of 256 pixels are read from a subfolder of `folder` (`--with folder=PATH`).
Differs: DDPM's own code (Ho et al. 2020, arXiv:2006.11239) attends after every block
going up; score_sde, which is followed, once a level.
Parameters: 111,569,923; none is published. (With the former, as
`attend_every_up_block` has it, 113,673,219.)
"""

from dataclasses import replace
from functools import partial

from experiments.score_sde import vp_ddpm_cifar10
from research.data.loader import Data
from research.data.sources import ImageFolder
from research.data.transforms import RandomFlip
from research.evals.samples import SampleGrid
from research.experiment import Experiment
from research.layers.blocks import ddpm_block
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Constant


def experiment(
    num_steps: int = 2_400_000,
    batch_size: int = 64,
    folder: str = "~/data/twelvefold/celebahq256",
) -> Experiment:
    """The published setting."""
    base = vp_ddpm_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            network=replace(
                base.task.network,
                channel_mults=(1, 1, 2, 2, 4, 4),
                block=partial(ddpm_block, dropout_rate=0.0),
            ),
            image_shape=(256, 256, 3),
        ),
        data=Data(
            train=ImageFolder(folder, size=(256, 256)),
            spec={"image": ((256, 256, 3), "uint8")},
            batch_size=batch_size,
            transforms=(RandomFlip(),),
            num_workers=8,
        ),
        optimizer=Adam(
            learning_rate=Constant(2e-5, warmup_steps=5000), eps=1e-8, clip_norm=1.0
        ),
        evals={"samples": SampleGrid(num=64, every=50_000)},
        offline_evals={"inception": base.offline_evals["inception"]},
        checkpoints=Checkpoints(every=5000, keep_last=2, keep_every=50_000),
        num_params=111_569_923,
        published=(),
    )
