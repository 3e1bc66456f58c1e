"""A Transformer on the text of the Long Range Arena: Tay et al. 2021, arXiv:2011.04006.

    python -m launch.prepare experiments/attention/softmax_lra_text.py
    python -m launch.train experiments/attention/softmax_lra_text.py

Reviews of IMDb by their first 1000 bytes.
Published: accuracy 64.27 %.
Official setting: google-research/long-range-arena, lra_benchmarks/text_classification.
Ours: ?
Differs: as softmax_lra_listops.
"""

from experiments.attention import softmax_lra_listops as arena
from research.data.sequences import PadTo, Prepend, Tokenize, Truncate
from research.data.sources import Tfds
from research.data.tokenizers import Bytes
from research.experiment import Experiment
from research.layers.cores import Core, Softmax
from research.train.schedules import InverseSqrt


def experiment(num_steps: int = 20_000, batch_size: int = 32) -> Experiment:
    """The published setting."""
    return of(Softmax(dropout_rate=0.1), 64.27, num_steps, batch_size)


def of(
    core: Core,
    accuracy: float,
    num_steps: int,
    batch_size: int,
    num_params: int | None = 3_487_234,
) -> Experiment:
    """The setting that all siblings share, with another core and what it published."""
    length = 1000
    return arena.classifier(
        core,
        train=Tfds("imdb_reviews", split="train"),
        evals={
            "validation": Tfds("imdb_reviews", split="test"),
            "test": Tfds("imdb_reviews", split="test"),
        },
        transforms=(
            Tokenize(Bytes()),
            Truncate(length),
            Prepend(),
            PadTo(1 + length),
        ),
        length=1 + length,
        vocab_size=Bytes().vocab_size,
        num_classes=2,
        num_layers=4,
        num_heads=4,
        embed_dim=256,
        attention_dim=256,
        mlp_dim=1024,
        schedule=InverseSqrt(0.05 / 8000**0.5, warmup_steps=8000),
        weight_decay=0.1,
        accuracy=accuracy,
        num_steps=num_steps,
        batch_size=batch_size,
        num_params=num_params,
    )
