"""NCSNv2 on LSUN bedroom 128x128: Song & Ermon 2020, arXiv:2006.09011, Table 4.

    python -m launch.prepare experiments/ncsn/ncsnv2_bedroom128.py
    python -m launch.train experiments/ncsn/ncsnv2_bedroom128.py

ncsnv2_tower128 on bedrooms, all else alike.
Published: samples, without a score.
Official setting: ermongroup/ncsnv2, configs/bedroom.yml, at commit 1bcea03b. Every
value below is theirs; the last denoising step, which that file alone does not mention,
is the paper's. Ours: ?
Parameters: 83,445,379.
"""

from dataclasses import replace

from experiments.ncsn import ncsnv2_tower128
from research.data.sources import Tfds
from research.experiment import Experiment


def experiment(num_steps: int = 150_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = ncsnv2_tower128.experiment(num_steps, batch_size)
    return replace(
        base,
        data=replace(
            base.data,
            train=Tfds("lsun/bedroom", split="train"),
            eval={"validation": Tfds("lsun/bedroom", split="validation")},
        ),
    )
