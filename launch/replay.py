"""Run a step that was not finite again, and find where it first went wrong.

python -m launch.replay runs/vp_ddpmpp_digits/nonfinite/step_00000012
"""

import json
from pathlib import Path
from typing import Annotated

import tyro

from launch.cli import run, start


def main(bundle: Annotated[Path, tyro.conf.Positional]) -> None:
    """Run a bad step again: the batch, the loss, the gradients, then, operation by
    operation, the first one whose result is not finite.

    Args:
      bundle: The folder nonfinite/step_<n> of a workdir.
    """
    start()
    import jax
    import jax.numpy as jnp

    from research.train import sharding
    from research.train.builder import build
    from research.train.bundle import read
    from research.train.metrics import mean

    evidence = read(bundle)
    experiment = evidence.request.load()
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    program = build(experiment, mesh)
    state = evidence.state(program.state)
    for name, value in evidence.batch.items():
        wrong = value.dtype.kind == "f" and not jnp.isfinite(value).all()
        told = "NOT FINITE" if wrong else "finite"
        print(f"batch {name}: {value.dtype} {value.shape} {told}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not jnp.isfinite(leaf).all():
            print(f"state {sharding.path_name(path)}: NOT FINITE")

    size = program.batch_size_of(evidence.batch)
    batch = sharding.to_global(evidence.batch, mesh, size)
    _, metrics = program.step(jax.tree.map(jnp.copy, state), batch)
    values = mean(metrics)
    print(json.dumps({"step": evidence.step, **{k: str(v) for k, v in values.items()}}))
    if not values["skipped"]:
        print("the step is finite here: it was not on the devices of the run")
        return

    try:
        with jax.disable_jit(), jax.debug_nans(True), jax.debug_infs(True):
            program.step(state, batch)
    except FloatingPointError as error:
        where = _innermost(error)
        print(f"first at {where}: {str(error).splitlines()[0]}")
    else:
        print("operation by operation the step is finite")


def _innermost(error: BaseException) -> str:
    """The last frame of our own or the user's code: file, line and text."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}: {frame.line}"


if __name__ == "__main__":
    run(main)
