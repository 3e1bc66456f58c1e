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
from research.layers.cores.linformer import Linformer
from research.layers.cores.lsh import LSH
from research.layers.cores.performer import (
    Generalized,
    Performer,
    Positive,
    Trigonometric,
    chi,
    constant,
    independent,
    orthogonal,
)
from research.layers.cores.softmax import Softmax, inverse, inverse_sqrt, unscaled
from research.layers.cores.sparse import (
    Block,
    Local,
    Sparse,
    Strided,
    Summary,
    fixed,
    local,
    strided,
)

__all__ = [
    "LSH",
    "SEES_ALL",
    "Bias",
    "Block",
    "Core",
    "CosFormer",
    "DoubleSoftmax",
    "Generalized",
    "Linear",
    "Linformer",
    "Local",
    "Mask",
    "Performer",
    "Positive",
    "Softmax",
    "Sparse",
    "Strided",
    "Summary",
    "Trigonometric",
    "chi",
    "constant",
    "elu_plus_one",
    "exponential",
    "fixed",
    "independent",
    "inverse",
    "inverse_sqrt",
    "local",
    "orthogonal",
    "relu",
    "relu_plus",
    "softmax_features",
    "squared_relu",
    "strided",
    "taylor",
    "unscaled",
]
