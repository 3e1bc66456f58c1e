"""Attention cores: from queries, keys and values to what attention returns."""

from research.layers.cores.base import SEES_ALL, Bias, Core, Mask
from research.layers.cores.softmax import Softmax, inverse, inverse_sqrt, unscaled

__all__ = [
    "SEES_ALL",
    "Bias",
    "Core",
    "Mask",
    "Softmax",
    "inverse",
    "inverse_sqrt",
    "unscaled",
]
