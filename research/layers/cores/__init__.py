"""Attention cores: from queries, keys and values to what attention returns."""

from research.layers.cores.base import SEES_ALL, Bias, Core, Mask
from research.layers.cores.cosformer import CosFormer
from research.layers.cores.efficient import DoubleSoftmax
from research.layers.cores.linear import (
    Linear,
    elu_plus_one,
    exponential,
    relu,
    relu_plus,
    softmax_features,
    squared_relu,
    taylor,
)
from research.layers.cores.softmax import Softmax, inverse, inverse_sqrt, unscaled

__all__ = [
    "SEES_ALL",
    "Bias",
    "Core",
    "CosFormer",
    "DoubleSoftmax",
    "Linear",
    "Mask",
    "Softmax",
    "elu_plus_one",
    "exponential",
    "inverse",
    "inverse_sqrt",
    "relu",
    "relu_plus",
    "softmax_features",
    "squared_relu",
    "taylor",
    "unscaled",
]
