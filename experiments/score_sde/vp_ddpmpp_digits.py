"""DDPM++ cont. (VP) on scikit-learn's digits: the CIFAR-10 setting at a laptop's size.

    python -m launch.train experiments/score_sde/vp_ddpmpp_digits.py

The code path of vp_ddpmpp_cifar10.py: what differs are sizes, the learning rate, a
faster average, and uniform dequantization in training (17 grey levels are coarse).
Required beforehand, from a residual MLP on the same data: held-out loss < 0.11,
FD-pixel < 0.40, classifier confidence > 0.68, label entropy > 0.95, bits/dim < 2.85;
and a held-out loss below the optimum of a Gaussian with the data's covariance.
Ours: held-out loss 0.0839 (Gaussian 0.1165), FD-pixel 0.084 (held-out digits 0.092),
confidence 0.849 (held-out digits 0.912), label entropy 0.997, nearest training image
at 1.20, 1.99 +- 0.02 bits/dim; printed after the training by

    python -m launch.evaluate runs/vp_ddpmpp_digits
"""

from functools import partial

from research.data.loader import Data
from research.data.sources import Digits
from research.diffusion.guidance import left_half
from research.diffusion.pixels import Pixels
from research.diffusion.processes import VP
from research.diffusion.samplers import PredictorCorrector, euler_maruyama
from research.evals.digits import DigitQuality
from research.evals.gaussian import GaussianBaseline
from research.evals.likelihood import BitsPerDim
from research.evals.loss import HeldOutLoss
from research.evals.restoration import Restoration
from research.evals.samples import SampleGrid
from research.experiment import Experiment, Required
from research.layers.blocks import BigGANBlock
from research.models.score_unet import ScoreUNet
from research.tasks.score_matching import ScoreMatching
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine
from research.train.state import Ema


def experiment(num_steps: int = 1600, batch_size: int = 64) -> Experiment:
    """A few minutes on two CPU cores."""
    return Experiment(
        task=ScoreMatching(
            network=ScoreUNet(
                channels=32,
                channel_mults=(1, 2),
                num_res_blocks=1,
                attention_resolutions=(4,),
                block=partial(BigGANBlock, dropout_rate=0.1),
            ),
            process=VP(beta_min=0.1, beta_max=20.0),
            pixels=Pixels(levels=17, low=-1.0, high=1.0, dequantize=True),
            sampler=PredictorCorrector(
                predictor=euler_maruyama, num_steps=200, min_time=1e-3
            ),
            image_shape=(8, 8, 1),
            min_time=1e-5,
        ),
        data=Data(
            train=Digits(split="train"),
            eval={"train": Digits(split="train"), "test": Digits(split="test")},
            spec={"image": ((8, 8, 1), "uint8"), "label": ((), "int32")},
            batch_size=batch_size,
        ),
        optimizer=Adam(
            learning_rate=Cosine(2e-3, num_steps=num_steps, warmup_steps=100),
            clip_norm=1.0,
        ),
        num_steps=num_steps,
        seed=42,
        ema=Ema(rate=0.995),
        evals={
            "test": HeldOutLoss(split="test", batch_size=120, num_rounds=8, every=400),
            "samples": SampleGrid(num=64),
        },
        offline_evals={
            "quality": DigitQuality(num_samples=1000, batch_size=250),
            "likelihood": BitsPerDim(split="test", num_examples=120, batch_size=120),
            "gaussian": GaussianBaseline(split="train"),
            "inpainting": Restoration(left_half),
        },
        checkpoints=Checkpoints(every=500, keep_last=2),
        log_every=100,
        num_params=748_737,
        required=(
            Required("test/loss", below=0.11),
            Required("quality/fd_pixel", below=0.40),
            Required("quality/confidence", above=0.68),
            Required("quality/label_entropy", above=0.95),
            Required("likelihood/bits_per_dim", below=2.85),
        ),
    )
