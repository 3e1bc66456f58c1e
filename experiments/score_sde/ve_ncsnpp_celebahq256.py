"""NCSN++ cont. (VE) on CelebA-HQ 256x256: Song et al. 2021, arXiv:2011.13456.

    python -m launch.train experiments/score_sde/ve_ncsnpp_celebahq256.py

ve_ncsnpp_cifar10 with the network for large images: every level sees the input again
and adds an image to the output.
Published: no number in the paper's tables.
Official setting: yang-song/score_sde, configs/ve/celebahq_256_ncsnpp_continuous.py and
the defaults it starts from, at commit 0acb9e0e. Every value below is theirs. Ours: ?
Differs: their images come from the TFRecords of Progressive GAN at 256 pixels; here
from image files of that size in a subfolder of `folder` (`--with folder=PATH`). No
image is held out, as there.
Parameters: 65,574,549; the weights converted for google/ncsnpp-celebahq-256 are a file
of 263 MB, which is as many in float32.
"""

from dataclasses import replace
from functools import partial

from experiments.score_sde import ve_ncsnpp_cifar10
from research.data.loader import Data
from research.data.sources import ImageFolder
from research.data.transforms import RandomFlip
from research.diffusion.processes import VE
from research.diffusion.samplers import Langevin, PredictorCorrector, reverse_diffusion
from research.evals.samples import SampleGrid
from research.experiment import Experiment
from research.layers.blocks import BigGANBlock, InputSkip
from research.layers.conv import fir_upsample
from research.train.checkpoints import Checkpoints


def experiment(
    num_steps: int = 2_400_000,
    batch_size: int = 64,
    folder: str = "~/data/twelvefold/celebahq256",
) -> Experiment:
    """The published setting."""
    base = ve_ncsnpp_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            network=replace(
                base.task.network,
                channel_mults=(1, 1, 2, 2, 2, 2, 2),
                num_res_blocks=2,
                block=partial(BigGANBlock, dropout_rate=0.0),
                input_pyramid=InputSkip,
                output_skip=fir_upsample,
            ),
            process=VE(sigma_min=0.01, sigma_max=348.0),
            sampler=PredictorCorrector(
                predictor=reverse_diffusion,
                corrector=Langevin(snr=0.075, num_steps=1),
                num_steps=2000,
                min_time=1e-5,
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
        evals={"samples": SampleGrid(num=64, every=50_000)},
        offline_evals={"inception": base.offline_evals["inception"]},
        checkpoints=Checkpoints(every=5000, keep_last=2, keep_every=50_000),
        num_params=65_574_549,
        published=(),
    )
