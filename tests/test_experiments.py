"""Every experiment at its true size: text, parameter count, shards, and its images.

No published data is read: images of the right sizes are made for those that need any.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from PIL.Image import Resampling

from research.data.sources import ImageFolder
from research.experiment import Experiment, describe, load
from research.train import sharding
from research.train.builder import build

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
FILES = sorted((ROOT / "experiments").rglob("*.py"))


def golden_of(path: Path) -> Path:
    return GOLDEN / path.relative_to(ROOT / "experiments").with_suffix(".txt")


def test_there_are_experiments_and_no_orphaned_goldens():
    assert FILES
    assert sorted(GOLDEN.rglob("*.txt")) == [golden_of(path) for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_settings_are_the_golden_ones(path):
    """A changed default anywhere is a diff here, in each experiment that it touches.

    If the change is meant: python -m tests.golden, and commit the diff.
    """
    assert describe(load(str(path))) == golden_of(path).read_text()


SHAPELESS = re.compile(
    r"(name|num_params|published|required|num_steps|seed|log_every|checkpoints"
    r"|evals|offline_evals|ema\.rate|optimizer\.(learning_rate|eps)"
    r"|data\.(train|eval|transforms|eval_transforms|num_workers)"
    r"|task\.(process|pixels|sampler|times|condition|predicts|reduction))\b"
)
"""Settings that no shape of the state depends on."""

_states: dict[str, jax.ShapeDtypeStruct] = {}


def abstract_params(experiment: Experiment) -> jax.ShapeDtypeStruct:
    """The parameters on eight devices; one trace for all that differ by no shape."""
    lines = describe(experiment).splitlines()
    key = "\n".join(line for line in lines if not SHAPELESS.match(line))
    if key not in _states:
        mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
        _states[key] = build(experiment, mesh).state.params
    return _states[key]


# Those of one network, whatever its process, one after the other: for one worker.
SIBLINGS = sorted(FILES, key=lambda path: path.stem.partition("_")[2])


@pytest.mark.parametrize("path", SIBLINGS, ids=lambda p: p.stem)
def test_true_size_builds_and_shards(path):
    experiment = load(str(path))
    leaves = jax.tree.leaves(abstract_params(experiment))
    assert sum(leaf.size for leaf in leaves) == experiment.num_params
    for leaf in leaves:
        if leaf.size >= sharding.LARGE:
            assert "fsdp" in leaf.sharding.spec


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_note_says_how_to_run_it(path):
    note = path.read_text().split('"""')[1]
    assert f"python -m launch.train experiments/{path.parent.name}/{path.name}" in note
    assert "Ours:" in note or "Measured:" in note
    # A second argument without its own --with is refused.
    assert not re.search(r"--with \S+=\S+ +\w+=", note)


def celeba(size: int) -> Callable[[Image.Image], Image.Image]:
    """The middle 140 pixels of 218x178, scaled down."""
    return lambda image: image.crop((19, 39, 159, 179)).resize(
        (size, size), Resampling.BILINEAR
    )


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("ncsn/ncsn_celeba32", (178, 218), celeba(32)),
        ("ncsn/ncsnv2_celeba64", (178, 218), celeba(64)),
        ("score_sde/ve_ncsnpp_celeba64", (178, 218), celeba(64)),
        (
            "ncsn/ncsnv2_church96",
            (341, 256),  # 127.9 pixels wide once 96 high
            lambda image: image.resize((127, 96), Resampling.BILINEAR).crop(
                (15, 0, 111, 96)
            ),
        ),
        (
            "ncsn/ncsnv2_tower128",
            (256, 375),
            lambda image: image.resize((128, 187), Resampling.BILINEAR).crop(
                (0, 29, 128, 157)
            ),
        ),
        (
            "score_sde/ve_ncsnpp_bedroom256",
            (341, 256),
            lambda image: image.crop((42, 0, 298, 256)),
        ),
        (
            "score_sde/vp_ddpm_church256",
            (256, 300),
            lambda image: image.crop((0, 22, 256, 278)),
        ),
    ],
)
def test_images_as_published_become_batches(name, size, expected, tmp_path):
    """From files as large as the data set's to what the official pipeline makes."""
    data = load(str(ROOT / f"experiments/{name}.py")).data
    image = noise_file(tmp_path / "class" / "0.png", size)
    folder = ImageFolder(str(tmp_path))
    assert len(data.eval) == 1
    data = replace(
        data, train=folder, eval=dict.fromkeys(data.eval, folder), num_workers=0
    )
    wanted = np.asarray(expected(image))
    (batch,) = data.eval_batches(*data.eval, batch_size=1)
    np.testing.assert_array_equal(batch["image"], wanted[None])
    flips = flips_of(replace(data, batch_size=16).batches(), wanted)
    assert 0 < flips < 16


@pytest.mark.parametrize(
    ("name", "side", "parts"),
    [
        ("ncsn/ncsnv2_ffhq256", 256, ("train/0", "test/0")),
        ("score_sde/ve_ncsnpp_celebahq256", 256, ("0",)),
        ("score_sde/ve_ncsnpp_ffhq1024", 1024, ("0",)),
        ("score_sde/vp_ddpm_celebahq256", 256, ("0",)),
    ],
)
def test_images_in_a_folder_become_batches(name, side, parts, tmp_path):
    images = [noise_file(tmp_path / part / "0.png", (side, side)) for part in parts]
    path = ROOT / f"experiments/{name}.py"
    data = load(str(path), {"folder": str(tmp_path)}).data
    data = replace(data, batch_size=8, num_workers=0)
    assert 0 < flips_of(data.batches(), np.asarray(images[0])) < 8


def noise_file(path: Path, size: tuple[int, int]) -> Image.Image:
    """A file of random colours, `size` as width and height."""
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    image.save(path)
    return image


def flips_of(batches, wanted: np.ndarray) -> int:
    """How many images of the first batch are mirrored; any other change fails."""
    images = next(batches)["image"]
    batches.close()
    mirrored = [np.array_equal(image, wanted[:, ::-1]) for image in images]
    for image, is_mirrored in zip(images, mirrored, strict=True):
        assert is_mirrored or np.array_equal(image, wanted)
    return sum(mirrored)
