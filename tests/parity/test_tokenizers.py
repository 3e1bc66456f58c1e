"""Tokenizers of public layouts beside the reference library's, on real words."""

import json
import shutil

import pytest
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from research.data.generated import english, german
from research.data.subwords import HuggingFaceTokenizer, Marian, SentencePiece, Training
from research.data.tokenizers import Special

NUMBERS = range(1, 999_999, 3001)
PAIRS = [{"source": english(n), "target": german(n)} for n in NUMBERS]
SENTENCES = [
    *(p["source"] for p in PAIRS[:40]),
    "Unseen words: \u4e2d, d\u00e9j\u00e0-vu!",
]


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_marian_reads_as_its_reference_does(tmp_path):
    pieces = []
    for side in ("source", "target"):
        model = tmp_path / f"{side}.model"
        training = Training(PAIRS, 40, (side,), character_coverage=1.0)
        SentencePiece(str(model), training).prepare()
        shutil.move(model, tmp_path / f"{side}.spm")
        ours = SentencePiece(str(tmp_path / f"{side}.spm"))
        pieces += [ours._processor.id_to_piece(i) for i in range(4, 40)]
    names = ["</s>", "<unk>", *dict.fromkeys(pieces), "<pad>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    theirs = transformers.MarianTokenizer(
        source_spm=str(tmp_path / "source.spm"),
        target_spm=str(tmp_path / "target.spm"),
        vocab=str(tmp_path / "vocab.json"),
    )
    ours = Marian(str(tmp_path), "source")
    assert ours.vocab_size == len(theirs)
    assert ours.special.end == theirs.eos_token_id
    assert ours.special.pad == theirs.pad_token_id
    assert ours.special.unknown == theirs.unk_token_id
    for sentence in SENTENCES:
        expected = theirs(sentence)["input_ids"]
        assert [*ours.encode(sentence), ours.special.end] == expected
    target = Marian(str(tmp_path), "target")
    for pair in PAIRS[:40]:
        ids = theirs(text_target=pair["target"])["input_ids"]
        assert [*target.encode(pair["target"]), 0] == ids
        assert target.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert target.decode(ids) == pair["target"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A WordPiece tokenizer that the reference library trained and saved."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=special)
    tokenizer.train_from_iterator((p["source"] for p in PAIRS), trainer)
    theirs = transformers.BertTokenizerFast(tokenizer_object=tokenizer)
    theirs.save_pretrained(folder)
    return folder, theirs


def test_bert_reads_as_its_reference_does(bert):
    folder, theirs = bert
    ours = HuggingFaceTokenizer(str(folder))
    assert ours.special == Special(
        pad=theirs.pad_token_id,
        end=theirs.sep_token_id,
        unknown=theirs.unk_token_id,
        begin=theirs.cls_token_id,
        mask=theirs.mask_token_id,
    )
    assert None not in vars(ours.special).values()
    assert ours.vocab_size == len(theirs)
    for sentence in SENTENCES:
        ids = theirs(sentence)["input_ids"]
        assert [ours.special.begin, *ours.encode(sentence), ours.special.end] == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_t5_keeps_its_special_ids(tmp_path):
    model = tmp_path / "spiece.model"
    SentencePiece(str(model), Training(PAIRS, 40, ("source",))).prepare()
    ours = SentencePiece(str(model))
    pieces = [
        (ours._processor.id_to_piece(i), ours._processor.get_score(i))
        for i in range(40)
    ]
    theirs = transformers.T5TokenizerFast(vocab=pieces, extra_ids=3, unk_id=2)
    theirs.save_pretrained(tmp_path / "t5")
    loaded = HuggingFaceTokenizer(str(tmp_path / "t5"))
    assert loaded.special.end == theirs.eos_token_id
    assert loaded.special.pad == theirs.pad_token_id
    assert loaded.special.begin is None
    assert loaded.vocab_size == len(theirs)
    for pair in PAIRS[:40]:
        ids = theirs(pair["source"])["input_ids"]
        assert [*loaded.encode(pair["source"]), loaded.special.end] == ids
        assert loaded.decode(ids) == pair["source"]
