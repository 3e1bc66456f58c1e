"""DeepNet, 100 layers a side, on WMT17 en-de: Wang et al. 2022, arXiv:2203.00555.

    python -m launch.train experiments/parametrization/deepnet_wmt17_ende_layers100.py

deepnet_wmt17_ende but for the depth, at which post-norm diverges.
Published: BLEU 28.9 on the test set (Table 1); pre-norm 27.4. Ours: ?
"""

from experiments.parametrization import deepnet_wmt17_ende as base
from research.experiment import Experiment


def experiment(num_steps: int = 100_000, batch_size: int = 1024) -> Experiment:
    """The published setting."""
    return base.deepnorm(100, 28.9, num_steps, batch_size, num_params=753_971_200)
