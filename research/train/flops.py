"""Model FLOPs, counted from the program itself.

The rule: two per multiply-add of every matrix product and convolution in the jaxpr of
the loss and its gradient; a `scan` body counts once per iteration, a `cond` as its
dearest branch, a `while` body once (its length is data). Elementwise work, reductions
and the optimizer do not count. Recomputation that `remat` asks for does.
"""

import math
from collections.abc import Callable
from typing import Any

import jax

RULE = "2 x multiply-adds of products and convolutions, forward and backward"


def count(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of one call of `function`; `args` may be shapes."""
    return _jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _jaxpr(jaxpr: Any) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        depth = math.prod(shape[d] for d in contracted)
        return 2 * math.prod(equation.outvars[0].aval.shape) * depth
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [_jaxpr(sub) for value in params.values() for sub in _subjaxprs(value)]
    if name == "scan":
        return params["length"] * sum(inner)
    return max(inner, default=0) if name == "cond" else sum(inner)


def _convolution(equation: Any) -> int:
    """Every pair of an input and an output position that a kernel tap joins."""
    params = equation.params
    numbers = params["dimension_numbers"]
    right = equation.invars[1].aval.shape
    out = equation.outvars[0].aval.shape
    taps = 1
    for axis, (stride, dilation, gap, (low, _)) in enumerate(
        zip(
            params["window_strides"],
            params["rhs_dilation"],
            params["lhs_dilation"],
            params["padding"],
            strict=True,
        )
    ):
        width = right[numbers.rhs_spec[2 + axis]]
        length = out[numbers.out_spec[2 + axis]]
        places = (
            o * stride + k * dilation - low for o in range(length) for k in range(width)
        )
        # Between dilated inputs there is nothing; padding counts, as it does elsewhere.
        taps *= sum(1 for place in places if place % gap == 0)
    batch = out[numbers.out_spec[0]]
    features = out[numbers.out_spec[1]]
    depth = right[numbers.rhs_spec[1]]
    # Grouping by batch splits the batch that `depth` runs over.
    return 2 * batch * features * depth * taps


def _subjaxprs(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [sub for item in value for sub in _subjaxprs(item)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []
