"""NCSN with technique 5 of NCSNv2 on CIFAR-10: Song & Ermon 2020, arXiv:2006.09011.

    python -m launch.train experiments/ncsn/ncsn_cifar10_5.py

ncsn_cifar10 with the average of its parameters (technique 5), in Score SDE's terms
(Song et al. 2021, arXiv:2011.13456): images are not dequantized, training is longer,
and the sampler starts at the prior of VE.
Published: no number; NCSN without and NCSNv2 with all techniques are in Table 1.
Official setting: yang-song/score_sde, configs/ve/ncsn/cifar10_5.py and the defaults it
starts from, at commit 0acb9e0e. Every value below is theirs. Ours: ?
Differs: their port of the network scales its maps by half-pixel centres; here, as in
NCSN's own code, corners stay corners.
Parameters: 30,117,635.
"""

from dataclasses import replace

from experiments.ncsn import ncsn_cifar10
from research.diffusion.samplers import AnnealedCorrector, PredictorCorrector
from research.experiment import Experiment
from research.train.checkpoints import Checkpoints
from research.train.state import Ema


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = ncsn_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            pixels=replace(base.task.pixels, dequantize=False),
            sampler=PredictorCorrector(
                predictor=None,
                corrector=AnnealedCorrector(snr=0.316, num_steps=100),
                num_steps=10,
                min_time=1e-5,
            ),
        ),
        ema=Ema(rate=0.999),
        checkpoints=Checkpoints(every=10_000, keep_last=2, keep_every=50_000),
        published=(),
    )
