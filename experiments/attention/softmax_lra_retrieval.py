"""A Transformer on retrieval of the Long Range Arena, arXiv:2011.04006.

    python -m launch.train experiments/attention/softmax_lra_retrieval.py

Does one article of the ACL Anthology Network cite the other, both by their first 4000
bytes, encoded apart? `folder` holds the release's new_aan_pairs.{train,eval,test}.tsv.
Published: accuracy 57.46 %.
Official setting: google-research/long-range-arena, lra_benchmarks/matching.
Ours: ?
Differs: as softmax_lra_listops; there is one hidden layer before the logits, not two.
"""

from experiments.attention import softmax_lra_listops as arena
from research.data.sequences import Join, PadTo, Prepend, Tokenize, Truncate
from research.data.sources import Source
from research.data.text import TsvText
from research.data.tokenizers import Bytes
from research.experiment import Experiment
from research.layers.cores import Core, Softmax
from research.train.schedules import InverseSqrt

COLUMNS = ("label", "first_id", "second_id", "first", "second")
PARTS = ("one", "two")


def experiment(
    num_steps: int = 5000,
    batch_size: int = 32,
    folder: str = "~/data/twelvefold/lra_release/tsv_data",
) -> Experiment:
    """The published setting."""
    return of(Softmax(dropout_rate=0.1), 57.46, num_steps, batch_size, folder)


def of(
    core: Core,
    accuracy: float,
    num_steps: int,
    batch_size: int,
    folder: str,
    num_params: int | None = 1_088_258,
) -> Experiment:
    """The setting that all siblings share, with another core and what it published."""
    length = 4000

    def pairs(split: str) -> Source:
        path = f"{folder}/new_aan_pairs.{split}.tsv"
        return TsvText(path, "first", "label", columns=COLUMNS, other="second")

    return arena.classifier(
        core,
        train=pairs("train"),
        evals={"validation": pairs("eval"), "test": pairs("test")},
        transforms=(
            Tokenize(Bytes(), "text", "one"),
            Tokenize(Bytes(), "other", "two"),
            Truncate(length, PARTS),
            Prepend(parts=PARTS),
            PadTo(1 + length, PARTS),
            Join(PARTS),
        ),
        length=2 * (1 + length),
        vocab_size=Bytes().vocab_size,
        num_classes=2,
        num_layers=4,
        num_heads=4,
        embed_dim=128,
        attention_dim=128,
        mlp_dim=512,
        schedule=InverseSqrt(0.05 / 8000**0.5, warmup_steps=8000),
        weight_decay=0.1,
        accuracy=accuracy,
        num_steps=num_steps,
        batch_size=batch_size,
        num_params=num_params,
        pairs=True,
    )
