"""BERT base is fine-tuned on SST-2: Devlin et al. 2019, arXiv:1810.04805, Table 5.

    python -m launch.train experiments/seq2seq/bert_base_sst2.py

The sentiment of 67,349 phrases and sentences of film reviews (Socher et al. 2013), in
the files of GLUE (gluebenchmark.com, SST-2.zip). `checkpoint` is a folder with
config.json, model.safetensors and tokenizer.json of google-bert/bert-base-uncased; its
heads of pretraining are left aside, its pooler is kept, and the layer of two classes is
drawn anew.
Published: accuracy 92.7 % on the dev set of 872 sentences (Table 5; the labels of the
test set, where it is 93.5 %, are not public). Ours: ?
Section 4.1: three epochs of batches of 32, at the best of four rates from 2e-5 to 5e-5,
here 2e-5; google-research/bert, optimization.py: a tenth of the steps to warm up, then
a line to zero, decay 0.01, clipped to a norm of 1, at most 128 subwords.
Differs: Adam's first steps correct its averages, theirs do not.
"""

from functools import partial

from research.data.loader import Data
from research.data.sequences import AppendEos, PadTo, Prepend, Tokenize, Truncate
from research.data.subwords import HuggingFaceTokenizer
from research.data.text import TsvText
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.pretrained import bert
from research.pretrained.start import FromPretrained
from research.tasks.sequence_classification import SequenceClassification
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Linear

CLS, SEP = 101, 102
"""Tokens of bert-base-uncased: what is read, and the end of a sentence."""

CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "num_labels": 2,
}
"""Whatever else its config.json says is the layout's default."""


def experiment(
    num_epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 2e-5,
    checkpoint: str = "~/data/twelvefold/bert-base-uncased",
    folder: str = "~/data/twelvefold/SST-2",
) -> Experiment:
    """The published setting."""
    num_steps, length = num_epochs * 67_349 // batch_size, 128
    transforms = (
        Tokenize(HuggingFaceTokenizer(checkpoint)),
        Truncate(length - 2),
        Prepend(CLS),
        AppendEos(end=SEP),
        PadTo(length),
    )

    def sentences(split: str) -> TsvText:
        return TsvText(f"{folder}/{split}.tsv", text="sentence", label="label")

    return Experiment(
        task=SequenceClassification(bert.model_of(CONFIG)),
        data=Data(
            train=sentences("train"),
            eval={"dev": sentences("dev")},
            spec={"tokens": ((length,), "int32"), "label": ((), "int32")},
            batch_size=batch_size,
            transforms=transforms,
            eval_transforms=transforms,
            num_workers=2,
        ),
        optimizer=Adam(
            Linear(learning_rate, num_steps=num_steps, warmup_steps=num_steps // 10),
            eps=1e-6,
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        num_steps=num_steps,
        start=FromPretrained(
            checkpoint,
            fresh="^params/logits/",
            load=partial(bert.load, architecture="BertModel"),
        ),
        evals={
            "dev": HeldOutLoss(
                split="dev", batch_size=32, every=num_steps // num_epochs
            )
        },
        checkpoints=Checkpoints(every=1000, keep_last=1),
        num_params=109_483_778,
        published=(Published("dev/accuracy", 0.927, "arXiv:1810.04805, Table 5"),),
    )
