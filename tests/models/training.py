"""Which parts of a model are told that they are trained."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import flax.linen as nn


@contextmanager
def told_to_train() -> Iterator[dict[str, bool]]:
    """By path, for each module that is called meanwhile and takes `train`.

    A part that is not told neither drops out nor takes the moments of the batch.
    """
    told: dict[str, bool] = {}

    def note(next_call, args, kwargs, context):
        module = context.module
        signature = inspect.signature(type(module).__call__)
        if context.method_name == "__call__" and "train" in signature.parameters:
            given = signature.bind(module, *args, **kwargs)
            given.apply_defaults()
            told["/".join(module.path)] = given.arguments["train"]
        return next_call(*args, **kwargs)

    with nn.intercept_methods(note):
        yield told
