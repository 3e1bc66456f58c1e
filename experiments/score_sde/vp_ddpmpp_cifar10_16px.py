"""CIFAR-10 at half its size: colour images that two CPU cores can learn.

    python -m launch.train experiments/score_sde/vp_ddpmpp_cifar10_16px.py

The path of vp_ddpmpp_fashion_mnist on colour images, to show what an unconditional
model does with measurements of real ones (Song et al. 2021, arXiv:2011.13456, section 5
and appendix I): the missing half is drawn, grey images are coloured, and means of
squares of 4 pixels made sharp again. `launch.evaluate` draws them into the run's
samples/: a row for each held-out image, the image first. The images are TFDS's or, with
`--with images=FOLDER`, those of a folder with train/CLASS/ and test/CLASS/.
Required beforehand: a held-out loss below the optimum of a Gaussian with the data's
covariance, 0.0521, which `launch.evaluate` prints; and restorations that are nearer to
their own image than to the next one.
Ours: held-out loss 0.0444; root mean square difference from the own image, and from the
next one: 0.106 and 0.355 coloured, 0.183 and 0.353 with a half drawn, 0.138 and 0.356
sharpened. (Trained on 10,000 of the images as JPEGs, a fifth of the set.)
"""

from dataclasses import replace
from functools import partial

from experiments.score_sde import vp_ddpmpp_fashion_mnist
from research.data.loader import Data
from research.data.sources import ImageFolder, Source, Tfds
from research.data.transforms import RandomFlip, Resize
from research.diffusion.guidance import colourization, left_half, low_resolution
from research.evals.gaussian import GaussianBaseline
from research.evals.restoration import Restoration
from research.evals.samples import SampleGrid
from research.experiment import Experiment, Required


def experiment(
    num_steps: int = 3000, batch_size: int = 64, images: str = ""
) -> Experiment:
    """About fifteen minutes on two CPU cores."""
    base = vp_ddpmpp_fashion_mnist.experiment(num_steps, batch_size)

    def source(split: str) -> Source:
        if images:
            return ImageFolder(f"{images}/{split}")
        return Tfds("cifar10", split=split)

    return replace(
        base,
        task=replace(
            base.task,
            network=replace(
                base.task.network,
                channels=32,
                channel_mults=(1, 2),
                attention_resolutions=(8,),
            ),
            image_shape=(16, 16, 3),
        ),
        data=Data(
            train=source("train"),
            eval={"test": source("test")},
            spec={"image": ((16, 16, 3), "uint8"), "label": ((), "int32")},
            batch_size=batch_size,
            transforms=(Resize(16), RandomFlip()),
            eval_transforms=(Resize(16),),
        ),
        offline_evals={
            "samples": SampleGrid(num=64),
            "gaussian": GaussianBaseline(split="train"),
            "colourization": Restoration(colourization, split="test"),
            "inpainting": Restoration(left_half, split="test"),
            "low_resolution": Restoration(
                partial(low_resolution, factor=4), split="test"
            ),
        },
        num_params=749_891,
        required=(Required("test/loss", below=0.0521),),
    )
