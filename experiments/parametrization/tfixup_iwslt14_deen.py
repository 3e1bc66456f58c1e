"""T-Fixup on IWSLT14 de-en, without norms or warm-up: Huang et al. 2020 (ICML).

    python -m launch.prepare experiments/parametrization/tfixup_iwslt14_deen.py
    python -m launch.train experiments/parametrization/tfixup_iwslt14_deen.py
    python -m launch.evaluate runs/tfixup_iwslt14_deen --average-last 10

Needs the folder `tmp` that fairseq's examples/translation/prepare-iwslt14.sh makes,
with train.de, train.en, valid.* and test.* (tokenized, in small letters), as
~/data/twelvefold/iwslt14.
Published: BLEU 35.73 (tokenized, small letters) from the mean of ten checkpoints, those
of the epochs 278 to 287 (README of layer6ai-labs/T-Fixup). Ours: ?
Official setting: its Train_IWSLT_TFixup_example.sh: six layers a side of width 512 with
4 heads and feed-forward layers of 1024, dropout 0.5, a rate of 5e-4 from the first
step, which falls to its half by step 12,000, batches of 4,000 tokens, 300 epochs of
about 1,100 steps; a beam of 4 with length penalty 0.3.
Differs: subwords are SentencePiece's BPE, 10,000 of both languages together, and
sentences are packed into rows of 256. Computed in float32, theirs in float16.
"""

from functools import partial

from research.data.loader import Data
from research.data.packing import NoLonger, Packed, Transformed
from research.data.sequences import AppendEos, Tokenize
from research.data.sources import Source
from research.data.subwords import SentencePiece, Training
from research.data.text import ParallelText
from research.decoding.scoring import Power
from research.evals.bleu import Bleu
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers import depth
from research.layers.attention import Attention
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal, Scaled
from research.layers.mlp import FeedForward
from research.layers.positions import Sinusoidal
from research.layers.residual import Plain
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import EncoderDecoder
from research.tasks.translation import Translation
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import InverseSqrt

PARTS = ("source", "target")


def experiment(
    num_steps: int = 330_000,
    batch_size: int = 16,
    num_layers: int = 6,
    dropout_rate: float = 0.5,
    folder: str = "~/data/twelvefold/iwslt14",
) -> Experiment:
    """The official setting."""
    length, dim, vocab_size = 256, 512, 10_000
    languages = ("de", "en")
    tokenizer = SentencePiece(
        f"{folder}/de-en-{vocab_size}.model",
        Training(
            ParallelText(folder, "train", languages), vocab_size, PARTS, kind="bpe"
        ),
    )

    def pairs(split: str) -> Source:
        encode = [Tokenize(tokenizer, part, part) for part in PARTS]
        text = ParallelText(folder, split, languages)
        return NoLonger(Transformed(text, (*encode, AppendEos(PARTS))), length, PARTS)

    def stack(gain: float, crosses: bool) -> Stack:
        attention = partial(
            Attention,
            num_heads=4,
            **depth.attention_inits(gain, depth.TFIXUP_QUERY_GAIN),
        )
        block = partial(
            TransformerBlock,
            mixer=attention,
            cross=attention if crosses else None,
            mlp=partial(FeedForward, mlp_dim=1024, **depth.mlp_inits(gain)),
            residual=partial(Plain, dropout_rate=dropout_rate),
        )
        return Stack(num_layers, (block,))

    crossing = depth.tfixup_cross(num_layers)
    embedding = TokenEmbedding(
        vocab_size,
        dim,
        scale=dim**0.5,
        positions=Sinusoidal(interleaved=False, endpoint=True),
        dropout_rate=dropout_rate,
        embedding_init=Scaled(Normal(dim**-0.5), crossing),
    )
    return Experiment(
        task=Translation(
            EncoderDecoder(
                embedding=embedding,
                source_embedding=embedding.clone(),
                encoder=stack(depth.tfixup(num_layers), crosses=False),
                decoder=stack(crossing, crosses=True),
            ),
            smoothing=0.1,
            beam_size=4,
            length_penalty=Power(0.3),
            extra_length=200,
        ),
        data=Data(
            train=Packed(pairs("train"), length, PARTS),
            eval={
                "valid": Packed(pairs("valid"), length, PARTS, most=1),
                "test": Packed(pairs("test"), length, PARTS, most=1),
            },
            spec={
                f"{part}{kind}": ((length,), "int32")
                for part in PARTS
                for kind in ("", "_segments", "_positions")
            },
            batch_size=batch_size,
        ),
        optimizer=Adam(InverseSqrt(5e-4, shift=4000), b2=0.98, weight_decay=1e-4),
        num_steps=num_steps,
        evals={"valid": HeldOutLoss(split="valid", batch_size=64, every=5500)},
        offline_evals={
            "bleu": Bleu(tokenizer, split="test", tokenize="none"),
        },
        checkpoints=Checkpoints(every=1100, keep_last=23),
        num_params=41_752_576,
        published=(Published("bleu/bleu", 35.73, "layer6ai-labs/T-Fixup, README.md"),),
    )
