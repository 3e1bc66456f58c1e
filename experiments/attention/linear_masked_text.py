"""Linear attention fills in bytes that are hidden.

    python -m launch.train experiments/attention/linear_masked_text.py

softmax_masked_text with the core of Katharopoulos et al. 2020, arXiv:2006.16236. Where
attention sees both ways, linear kernels lose more by it than where it is causal (Su
2020, kexue.fm/archives/7546).
Required beforehand: below 4.4 bits a byte on the files held out.
Ours: ?
"""

from experiments.attention import softmax_masked_text
from research.experiment import Experiment
from research.layers.cores import Linear


def experiment(
    num_steps: int = 600, batch_size: int = 16, path: str = ""
) -> Experiment:
    """A few minutes on two CPU cores."""
    return softmax_masked_text.of(
        Linear(), num_steps, batch_size, path, below=4.4, num_params=876_549
    )
