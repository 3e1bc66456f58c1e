"""DeepNet, 18 layers a side, on WMT17 en-de: Wang et al. 2022, arXiv:2203.00555.

    python -m launch.prepare experiments/parametrization/deepnet_wmt17_ende.py
    python -m launch.train experiments/parametrization/deepnet_wmt17_ende.py

Published: BLEU 28.8 on the test set (Table 1), by the scripts of fairseq; 27.8 with 6
layers a side, 29.0 with 50, 28.9 with 100 (deepnet_wmt17_ende_layers100). With norms
after the branches and nothing else 28.8 (postln_wmt17_ende), and from 50 layers on no
convergence; with norms before them 28.0 (preln_wmt17_ende). Ours: ?
The base size of Vaswani et al. 2017 with a rate of 5e-4 and 64 times 4,096 tokens a
step (Figure 7). The stream is scaled up, and values, outputs and feed-forward layers
start scaled down, by constants of the depth: research.layers.depth.
Differs: what the text does not tell (steps, warm-up, dropout, smoothing, Adam's
constants, subwords) is that of transformer_base_wmt14_ende, and so are rows of 256
tokens, here 1024 of them a step. Kernels are uniform of Xavier's variance, theirs
normal. The test set is newstest2017, the dev set newstest2016.
"""

from functools import partial

from experiments.seq2seq.transformer_base_wmt14_ende import PARTS
from research.data.loader import Data
from research.data.packing import NoLonger, Packed, Transformed
from research.data.sequences import AppendEos, Tokenize
from research.data.sources import Source, Tfds
from research.data.stored import Stored
from research.data.subwords import SentencePiece, Training
from research.data.transforms import Rename
from research.evals.bleu import Bleu
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers import depth
from research.layers.attention import Attention
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal
from research.layers.mlp import FeedForward
from research.layers.positions import Sinusoidal
from research.layers.residual import PostNorm
from research.layers.stack import Slot, Stack, TransformerBlock
from research.models.transformer import EncoderDecoder
from research.tasks.translation import Translation
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import InverseSqrt

SOURCE = "arXiv:2203.00555, Table 1"
DROPOUT = 0.1


def experiment(num_steps: int = 100_000, batch_size: int = 1024) -> Experiment:
    """The published setting."""
    return deepnorm(18, 28.8, num_steps, batch_size, num_params=151_248_896)


def deepnorm(
    num_layers: int, bleu: float, num_steps: int, batch_size: int, num_params: int
) -> Experiment:
    """With as many layers on each side."""
    encoder, decoder = depth.deepnorm_pair(num_layers, num_layers)
    return of(
        num_layers,
        bleu,
        num_steps,
        batch_size,
        num_params,
        residuals=(
            partial(PostNorm, dropout_rate=DROPOUT, skip_scale=encoder.skip),
            partial(PostNorm, dropout_rate=DROPOUT, skip_scale=decoder.skip),
        ),
        gains=(encoder.gain, decoder.gain),
    )


def of(
    num_layers: int,
    bleu: float,
    num_steps: int,
    batch_size: int,
    num_params: int,
    residuals: tuple[Slot, Slot],
    gains: tuple[float, float] = (1.0, 1.0),
    final_norm: Slot | None = None,
) -> Experiment:
    """The setting that all siblings share; pairs are of encoder and decoder."""
    length, dim, vocab_size = 256, 512, 37_000
    tokenizer = SentencePiece(
        f"~/data/twelvefold/wmt17_de_en_bpe{vocab_size}.model",
        Training(wmt17("train"), vocab_size, PARTS, kind="bpe"),
    )

    def pairs(split: str) -> Source:
        encode = [Tokenize(tokenizer, part, part) for part in PARTS]
        encoded = Transformed(wmt17(split), (*encode, AppendEos(PARTS)))
        return NoLonger(encoded, length, PARTS)

    def stack(side: int) -> Stack:
        attention = partial(
            Attention,
            num_heads=8,
            use_bias=False,
            **depth.attention_inits(gains[side]),
        )
        block = partial(
            TransformerBlock,
            mixer=attention,
            cross=attention if side else None,
            mlp=partial(FeedForward, mlp_dim=2048, **depth.mlp_inits(gains[side])),
            residual=residuals[side],
        )
        return Stack(num_layers, (block,), final_norm=final_norm, remat=True)

    return Experiment(
        task=Translation(
            network=EncoderDecoder(
                embedding=TokenEmbedding(
                    vocab_size,
                    dim,
                    scale=dim**0.5,
                    positions=Sinusoidal(),
                    dropout_rate=DROPOUT,
                    embedding_init=Normal(dim**-0.5),
                ),
                encoder=stack(0),
                decoder=stack(1),
            ),
            smoothing=0.1,
        ),
        data=Data(
            train=Stored(
                Packed(pairs("train"), length, PARTS),
                f"~/data/twelvefold/wmt17_de_en_bpe{vocab_size}_rows{length}",
            ),
            eval={
                "newstest2016": Packed(pairs("validation"), length, PARTS, most=1),
                "newstest2017": Packed(pairs("test"), length, PARTS, most=1),
            },
            spec={
                f"{part}{kind}": ((length,), "int32")
                for part in PARTS
                for kind in ("", "_segments", "_positions")
            },
            batch_size=batch_size,
            num_workers=4,
        ),
        optimizer=Adam(InverseSqrt(5e-4, warmup_steps=4000), b2=0.98, eps=1e-9),
        num_steps=num_steps,
        num_microbatches=8,
        evals={"dev": HeldOutLoss(split="newstest2016", batch_size=64, every=5000)},
        offline_evals={"bleu": Bleu(tokenizer, split="newstest2017")},
        checkpoints=Checkpoints(every=1500, keep_last=10),
        num_params=num_params,
        published=(Published("bleu/bleu", bleu, SOURCE),),
    )


def wmt17(split: str) -> Source:
    """English lines and their translations."""
    text = Tfds("wmt17_translate/de-en", split=split)
    return Transformed(text, (Rename((("en", "source"), ("de", "target"))),))
