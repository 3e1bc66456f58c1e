"""Draw samples from a checkpoint.

python -m launch.sample runs/vp_ddpmpp_digits --num 100 --seed 1
"""

from pathlib import Path
from typing import Annotated

import tyro

from launch.cli import run, start
from launch.restored import Restored
from research.errors import UserError


def main(
    restored: Annotated[Restored, tyro.conf.arg(name="")],
    num: int = 64,
    seed: int = 0,
    batch_size: int = 64,
    out: Path | None = None,
) -> None:
    """Draw samples: OUT.png with a grid of them and OUT.npz with the arrays.

    Args:
      restored: Which checkpoint.
      num: How many.
      seed: Sample i is a function of the seed, the batch size and i.
      batch_size: Drawn at a time, split over the devices.
      out: Path without ending; default samples/STEP-seed-SEED in the workdir.
    """
    start()
    import jax
    import numpy as np

    from research.evals.samples import draw_samples, full_range, save_grid

    if num < 1 or batch_size < 1:
        raise UserError(f"--num {num} --batch-size {batch_size}: both are at least 1")
    experiment, variables, mesh, step = restored.load()
    task = experiment.task
    if not hasattr(task, "sample"):
        raise UserError(f"{type(task).__name__} draws no samples: it has no `sample`")
    drawn = draw_samples(task, variables, jax.random.key(seed), num, batch_size, mesh)
    out = out or restored.workdir / "samples" / f"{step:08d}-seed-{seed}"
    if jax.process_index() == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        np.savez(out.with_name(f"{out.name}.npz"), allow_pickle=False, **drawn)
        images = full_range(drawn["image"], task.pixels.levels)
        save_grid(images, out.with_name(f"{out.name}.png"))
        print(f"{num} samples of step {step}: {out}.png, {out}.npz")


if __name__ == "__main__":
    run(main)
