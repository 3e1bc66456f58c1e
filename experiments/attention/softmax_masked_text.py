"""Softmax attention fills in bytes that are hidden: BERT's task at a laptop's size.

    python -m launch.train experiments/attention/softmax_masked_text.py

The text, the network and the steps of softmax_text, but that it sees both ways, and of
15 % of the bytes says what they were: 80 % of these are hidden, 10 % another byte,
and 10 % as they were (Devlin et al. 2019, arXiv:1810.04805, section 3.1). A byte by
itself has 4.62 bits.
Required beforehand: below 4.0 bits a byte on the files held out.
Ours: ?
"""

from dataclasses import replace

from experiments.attention import softmax_text
from research.data.sequences import RandomMask
from research.data.tokenizers import Bytes
from research.experiment import Experiment, Required
from research.layers.cores import Core, Softmax
from research.layers.initializers import lecun
from research.layers.norms import LayerNorm
from research.models.transformer import Encoder, MaskedLanguageModel
from research.tasks.language_modelling import MaskedLanguageModelling


def experiment(
    num_steps: int = 600, batch_size: int = 16, path: str = ""
) -> Experiment:
    """About five minutes on two CPU cores."""
    return of(Softmax(), num_steps, batch_size, path, below=4.0)


def of(
    core: Core,
    num_steps: int,
    batch_size: int,
    path: str,
    below: float,
    num_params: int = 876_549,
) -> Experiment:
    """The setting that all siblings share, with another core and its requirement."""
    base = softmax_text.of(core, num_steps, batch_size, path)
    hidden = Bytes().vocab_size
    masks = (RandomMask(mask=hidden, vocab_size=hidden),)
    network = base.task.network
    kinds = {"tokens": "int32", "targets": "int32", "weights": "float32"}
    return replace(
        base,
        task=MaskedLanguageModelling(
            MaskedLanguageModel(
                Encoder(
                    replace(network.embedding, vocab_size=hidden + 1), network.body
                ),
                norm=LayerNorm,
                kernel_init=lecun(),
            )
        ),
        data=replace(
            base.data,
            transforms=masks,
            eval_transforms=masks,
            spec={n: ((softmax_text.LENGTH,), kind) for n, kind in kinds.items()},
        ),
        num_params=num_params,
        required=(Required("test/bits", below=below),),
    )
