"""Draw samples from a checkpoint, or what it finds in images.

python -m launch.sample runs/vp_ddpmpp_digits --num 100 --seed 1
python -m launch.sample runs/detr_scenes --num 16 --split test
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
    split: str | None = None,
    threshold: float = 0.5,
) -> None:
    """Draw samples: OUT.png with a grid of them and OUT.npz with the arrays.

    Of a task that finds objects: OUT.png with images beside what was found in them, and
    OUT.npz with scores, classes, boxes (x0, y0, x1, y1) in pixels and image_id.

    Args:
      restored: Which checkpoint.
      num: How many samples, or images.
      seed: Sample i is a function of the seed, the batch size and i.
      batch_size: Drawn at a time, split over the devices.
      out: Path without ending; default samples/STEP-seed-SEED in the workdir, or
        samples/STEP-SPLIT.
      split: Whose images objects are found in; default the first of data.eval.
      threshold: Objects with a higher score are drawn.
    """
    start()
    import jax
    import numpy as np

    from research.evals.base import Context
    from research.evals.detection_samples import DetectionSamples
    from research.evals.samples import draw_samples, full_range, save_grid

    if num < 1 or batch_size < 1:
        raise UserError(f"--num {num} --batch-size {batch_size}: both are at least 1")
    experiment, variables, mesh, step = restored.load()
    task = experiment.task
    if hasattr(task, "detect"):
        part = split or next(iter(experiment.data.eval), "train")
        out = out or restored.workdir / "samples" / f"{step:08d}-{part}"
        context = Context(experiment.data, mesh, step, seed, out.parent)
        evaluator = DetectionSamples(part, num, batch_size, threshold)
        pairs = evaluator.find(task, variables, context)
        evaluator.draw(pairs, context, out.with_name(f"{out.name}.png"))
        if jax.process_index() == 0:
            found = [pair.found for pair in pairs]
            np.savez(
                out.with_name(f"{out.name}.npz"),
                allow_pickle=False,
                image_id=np.array([one.image_id for one in found]),
                scores=np.stack([one.scores for one in found]),
                classes=np.stack([one.classes for one in found]),
                boxes=np.stack([one.boxes_in(one.original_size) for one in found]),
            )
            print(f"{len(found)} images of {part}, step {step}: {out}.png, {out}.npz")
        return
    if not hasattr(task, "sample"):
        raise UserError(
            f"{type(task).__name__} draws no samples and finds nothing: it has neither "
            "`sample` nor `detect`"
        )
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
