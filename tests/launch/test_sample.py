"""`launch.sample` of a task that finds objects, and of one that does neither."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch import sample
from research.errors import UserError
from tests.evals.test_detections import SCENES, Oracle, context


@dataclass(frozen=True)
class Trained:
    """A checkpoint that is there."""

    workdir: Path
    task: Any

    def load(self):
        here = context()
        return SimpleNamespace(task=self.task, data=here.data), {}, here.mesh, 70


def test_what_is_found_is_drawn_and_kept(tmp_path, capsys):
    sample.main(Trained(tmp_path, Oracle()), num=3, batch_size=8)
    out = tmp_path / "samples" / "00000070-val"
    assert capsys.readouterr().out == (
        f"3 images of val, step 70: {out}.png, {out}.npz\n"
    )
    with Image.open(f"{out}.png") as picture:
        # Three pairs side by side, each image at least 192 pixels long.
        assert picture.size == (6 * 194 + 2, 194 + 2)
    with np.load(f"{out}.npz") as arrays:
        assert arrays["image_id"].tolist() == [0, 1, 2]
        for row in range(3):
            scene = SCENES[row]
            num = len(scene["boxes"])
            assert arrays["classes"][row, :num].tolist() == scene["classes"].tolist()
            assert arrays["scores"][row, :num] == pytest.approx(0.9, abs=0.01)
            assert arrays["boxes"][row, :num] == pytest.approx(scene["boxes"], abs=1e-3)
    elsewhere = tmp_path / "new" / "mine"
    trained = Trained(tmp_path, Oracle())
    sample.main(trained, num=1, batch_size=8, out=elsewhere, split="train")
    assert {p.name for p in elsewhere.parent.iterdir()} == {"mine.png", "mine.npz"}


def test_what_draws_nothing_is_told(tmp_path):
    with pytest.raises(
        UserError, match="SimpleNamespace draws .* neither `sample` nor"
    ):
        sample.main(Trained(tmp_path, SimpleNamespace()))
