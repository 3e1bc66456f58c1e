"""A Transformer on Pathfinder of the Long Range Arena, arXiv:2011.04006.

    python -m launch.train experiments/attention/softmax_lra_pathfinder.py

Are two dots joined by a dashed path? 200,000 images of 32 x 32 pixels, the hard ones,
as sequences of tokens. `folder` is the release's pathfinder32.
Published: accuracy 71.40 %.
Official setting: google-research/long-range-arena,
lra_benchmarks/image/configs/pathfinder32: 200 epochs, the mean over all pixels.
Ours: ?
Differs: as softmax_lra_listops; the release's examples are split in the order of its
files.
"""

from experiments.attention import softmax_lra_listops as arena
from research.data.pathfinder import Pathfinder
from research.data.sequences import PixelTokens
from research.experiment import Experiment
from research.layers.cores import Core, Softmax
from research.layers.positions import Learned
from research.train.schedules import Cosine

FOLDER = "~/data/twelvefold/lra_release/pathfinder32"


def experiment(
    num_steps: int = 62_500, batch_size: int = 512, folder: str = FOLDER
) -> Experiment:
    """The published setting."""
    return of(Softmax(dropout_rate=0.1), 71.40, num_steps, batch_size, folder)


def of(
    core: Core,
    accuracy: float,
    num_steps: int,
    batch_size: int,
    folder: str,
    *,
    num_layers: int = 4,
    num_heads: int = 4,
    embed_dim: int = 32,
    attention_dim: int = 16,
    mlp_dim: int = 32,
    dropout_rate: float = 0.2,
    num_params: int | None = 59_426,
) -> Experiment:
    """The setting that all siblings share, with another core and what it published."""
    images = f"{folder}/curv_contour_length_14"
    return arena.classifier(
        core,
        train=Pathfinder(images, "train"),
        evals={
            "validation": Pathfinder(images, "validation"),
            "test": Pathfinder(images, "test"),
        },
        transforms=(PixelTokens(),),
        length=1024,
        vocab_size=4 + 256,
        num_classes=2,
        num_layers=num_layers,
        num_heads=num_heads,
        embed_dim=embed_dim,
        attention_dim=attention_dim,
        mlp_dim=mlp_dim,
        schedule=Cosine(1e-3, num_steps=num_steps, warmup_steps=312),
        weight_decay=0.0,
        accuracy=accuracy,
        num_steps=num_steps,
        batch_size=batch_size,
        num_params=num_params,
        dropout_rate=dropout_rate,
        pooling="mean",
        positions=Learned(1024),
    )
