"""DDPM++ cont. (VP) on CIFAR-10: Song et al. 2021, arXiv:2011.13456, Tables 2 and 3.

    python -m launch.prepare experiments/score_sde/vp_ddpmpp_cifar10.py
    python -m launch.train experiments/score_sde/vp_ddpmpp_cifar10.py

Published: FID 2.55 and IS 9.58 (best checkpoint, Euler-Maruyama), FID 3.93 (last
checkpoint, ODE), 3.16 bits/dim. Ours: ?
Official setting: yang-song/score_sde, configs/vp/cifar10_ddpmpp_continuous.py and the
defaults it starts from, at commit 0acb9e0e. Every value below is theirs.
Parameters: 61,804,419, as in the released checkpoint.
"""

from functools import partial

from research.data.loader import Data
from research.data.sources import Tfds
from research.data.transforms import RandomFlip
from research.diffusion.pixels import Pixels
from research.diffusion.processes import VP
from research.diffusion.samplers import PredictorCorrector, euler_maruyama
from research.evals.frechet import FrechetInception
from research.evals.likelihood import BitsPerDim
from research.evals.loss import HeldOutLoss
from research.evals.samples import SampleGrid
from research.experiment import Experiment, Published
from research.layers.blocks import BigGANBlock
from research.models.score_unet import ScoreUNet
from research.pretrained import inception
from research.tasks.score_matching import ScoreMatching
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Constant
from research.train.state import Ema


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting; its 1.3M steps of 128 images are about 3300 epochs."""
    return Experiment(
        task=ScoreMatching(
            network=ScoreUNet(
                channels=128,
                channel_mults=(1, 2, 2, 2),
                num_res_blocks=4,
                attention_resolutions=(16,),
                block=partial(BigGANBlock, dropout_rate=0.1),
            ),
            process=VP(beta_min=0.1, beta_max=20.0),
            pixels=Pixels(levels=256, low=-1.0, high=1.0),
            sampler=PredictorCorrector(
                predictor=euler_maruyama, num_steps=1000, min_time=1e-3
            ),
            image_shape=(32, 32, 3),
            min_time=1e-5,
        ),
        data=Data(
            train=Tfds("cifar10", split="train"),
            eval={"test": Tfds("cifar10", split="test")},
            spec={"image": ((32, 32, 3), "uint8"), "label": ((), "int32")},
            batch_size=batch_size,
            transforms=(RandomFlip(),),
        ),
        optimizer=Adam(
            learning_rate=Constant(2e-4, warmup_steps=5000), eps=1e-8, clip_norm=1.0
        ),
        num_steps=num_steps,
        seed=42,
        ema=Ema(rate=0.9999),
        evals={
            "test": HeldOutLoss(split="test", every=10_000),
            "samples": SampleGrid(num=64, every=50_000),
        },
        offline_evals={
            "inception": FrechetInception(
                network=partial(
                    inception.load,
                    path="~/data/twelvefold/pt_inception-2015-12-05.safetensors",
                ),
                num_samples=50_000,
            ),
            "likelihood": BitsPerDim(split="test", num_rounds=5),
        },
        checkpoints=Checkpoints(every=10_000, keep_last=2, keep_every=50_000),
        log_every=50,
        num_params=61_804_419,
        published=(
            Published("fid", 2.55, "Table 3, best checkpoint"),
            Published("inception_score", 9.58, "Table 3, best checkpoint"),
            Published("bits_per_dim", 3.16, "Table 2, uniform dequantization"),
        ),
    )
