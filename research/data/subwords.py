"""Tokenizers whose vocabulary lies in a file: SentencePiece and public checkpoints'."""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from research.data.sources import Lazy, Preparable, Source
from research.data.tokenizers import (
    BEGIN,
    END,
    PAD,
    UNKNOWN,
    Ids,
    Special,
    known_ids,
    texts,
)
from research.errors import UserError


@dataclass(frozen=True)
class Training:
    """How a SentencePiece model is made.

    Attributes:
      corpus: whose text it is made from.
      vocab_size: special ids included.
      parts: of the corpus's examples.
      kind: of model.
      character_coverage: of the corpus; rarer characters are unknown, unless
        `byte_fallback` writes them as bytes.
      byte_fallback: whether it does.
    """

    corpus: Source
    vocab_size: int
    parts: tuple[str, ...] = ("text",)
    kind: Literal["unigram", "bpe"] = "unigram"
    character_coverage: float = 0.9995
    byte_fallback: bool = False


@dataclass(frozen=True)
class SentencePiece(Lazy):
    """A SentencePiece model: subwords, in which text without odd spaces comes back.

    Source: T. Kudo, J. Richardson, "SentencePiece", EMNLP 2018, arXiv:1808.06226.

    Attributes:
      path: of the `.model` file.
      training: how `prepare` makes the file where it is missing; None: somebody else
        does. The same corpus gives the same file. Beside it, `path` + `.json` says what
        it was made from.
    """

    path: str
    training: Training | None = None

    @property
    def _file(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def _record(self) -> Path:
        return self._file.with_name(f"{self._file.name}.json")

    @cached_property
    def _processor(self) -> Any:
        if self.missing():
            told = "python -m launch.prepare EXPERIMENT trains it"
            raise UserError(
                f"no {self._file}: {told if self.training else 'put it there'}"
            )
        processor = _read_sentencepiece(self._file)
        size = processor.get_piece_size()
        if self.training is not None and size != self.training.vocab_size:
            raise UserError(
                f"{self._file} has {size} pieces, expected {self.training.vocab_size}: "
                "remove it, and python -m launch.prepare EXPERIMENT trains it anew"
            )
        return processor

    @property
    def vocab_size(self) -> int:
        if self.training is not None:
            return self.training.vocab_size
        return self._processor.get_piece_size()

    @property
    def special(self) -> Special:
        return Special() if self.training is not None else self._special

    @cached_property
    def _special(self) -> Special:
        processor = self._processor
        ids = (
            processor.pad_id(),
            processor.eos_id(),
            processor.unk_id(),
            processor.bos_id(),
        )
        return Special(*(None if i < 0 else i for i in ids))

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: Ids) -> str:
        """The text, " \u2047 " where unknown."""
        return self._processor.decode(known_ids(ids, self._processor.get_piece_size()))

    def missing(self) -> list[str]:
        """The file, if it is not there."""
        return [] if self._file.is_file() else [str(self._file)]

    def prepare(self) -> str:
        """Train the model unless it is there; check what it was trained from."""
        if self.training is None:
            return f"{self._processor.get_piece_size()} pieces"
        corpus = "\n".join(texts(self.training.corpus, self.training.parts))
        settings = {f.name: getattr(self.training, f.name) for f in fields(Training)}
        settings["corpus"] = hashlib.sha256(corpus.encode()).hexdigest()
        settings = json.loads(json.dumps(settings))  # tuples are lists in the file
        if not self._file.is_file():
            model = _train_sentencepiece(corpus.split("\n"), self.training)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            _write(self._record, json.dumps(settings, indent=1).encode())
            _write(self._file, model)
        self._check(settings)
        return f"{self._processor.get_piece_size()} pieces, trained from this corpus"

    def _check(self, settings: dict[str, Any]) -> None:
        try:
            found = json.loads(self._record.read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self._record} cannot be read: {error}: it says what {self._file} "
                "was trained from: remove both, or set training=None"
            ) from error
        if found != settings:
            changed = [name for name in settings if found.get(name) != settings[name]]
            raise UserError(
                f"{self._file} was trained with other settings ({', '.join(changed)}): "
                "remove it to train it anew, or choose another path"
            )


def _read_sentencepiece(path: Path) -> Any:
    try:
        # Its C++ would write to the standard error before it raises.
        return _import_sentencepiece().SentencePieceProcessor(
            model_proto=path.read_bytes() or b"\0"
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path} cannot be read as a SentencePiece model: {error}: fetch it again"
        ) from error


def _train_sentencepiece(lines: Iterable[str], training: Training) -> bytes:
    model = io.BytesIO()
    try:
        _import_sentencepiece().SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=training.vocab_size,
            model_type=training.kind,
            character_coverage=training.character_coverage,
            byte_fallback=training.byte_fallback,
            pad_id=PAD,
            eos_id=END,
            unk_id=UNKNOWN,
            bos_id=BEGIN,
            # More threads add up in an order of their own; longer lines are left out.
            num_threads=1,
            max_sentence_length=2**16,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"no SentencePiece model of {training.vocab_size} pieces from this corpus: "
            f"{str(error).strip()}"
        ) from error
    return model.getvalue()


def _import_sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            "this experiment reads SentencePiece models: pip install sentencepiece"
        ) from error
    return sentencepiece


def _write(path: Path, content: bytes) -> None:
    """At once or not at all, whoever else is reading."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)


# Of public checkpoints


@dataclass(frozen=True)
class HuggingFaceTokenizer(Lazy):
    """The tokenizer of a public checkpoint that has a `tokenizer.json`: T5, BERT, ...

    Attributes:
      folder: holds it, and `tokenizer_config.json` or `special_tokens_map.json`, which
        name the special tokens. BERT's [CLS] and [SEP] are `begin` and `end`.
    """

    folder: str

    @property
    def _path(self) -> Path:
        return Path(self.folder).expanduser()

    @cached_property
    def _tokenizer(self) -> Any:
        _require(self)
        try:
            from tokenizers import Tokenizer as Implementation
        except ImportError as error:
            raise UserError(
                "this experiment reads a tokenizer.json: pip install tokenizers"
            ) from error
        path = self._path / "tokenizer.json"
        try:
            tokenizer = Implementation.from_file(str(path))
        except Exception as error:  # it raises no narrower one
            raise UserError(f"{path} cannot be read: {error}") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    @property
    def special(self) -> Special:
        return self._special

    @cached_property
    def _special(self) -> Special:
        named: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (self._path / name).is_file():
                named |= _read_json(self._path / name)

        def find(*keys: str) -> int | None:
            for key in keys:
                token = named.get(key)
                token = token["content"] if isinstance(token, dict) else token
                if token is not None:
                    return self._tokenizer.token_to_id(token)
            return None

        return Special(
            pad=find("pad_token"),
            end=find("eos_token", "sep_token"),
            unknown=find("unk_token"),
            begin=find("bos_token", "cls_token"),
            mask=find("mask_token"),
        )

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Ids) -> str:
        """The text without special tokens, an unknown one's among them."""
        return self._tokenizer.decode(known_ids(ids, self.vocab_size))

    def missing(self) -> list[str]:
        """The file, if it is not there."""
        path = self._path / "tokenizer.json"
        return [] if path.is_file() else [str(path)]

    def prepare(self) -> str:
        """Read it."""
        return f"{self.vocab_size} tokens"


@dataclass(frozen=True)
class Marian(Lazy):
    """One side of a Marian checkpoint: SentencePiece, numbered by `vocab.json`.

    Differs: where the package sacremoses is installed, the reference library normalizes
    punctuation first.

    Attributes:
      folder: holds `source.spm`, `target.spm` and `vocab.json`.
      side: which language.
    """

    folder: str
    side: Literal["source", "target"]

    def _files(self) -> tuple[Path, Path]:
        folder = Path(self.folder).expanduser()
        return folder / f"{self.side}.spm", folder / "vocab.json"

    @cached_property
    def _processor(self) -> Any:
        _require(self)
        return _read_sentencepiece(self._files()[0])

    @cached_property
    def _ids(self) -> dict[str, int]:
        _require(self)
        return _read_json(self._files()[1])

    @cached_property
    def _pieces(self) -> list[str]:
        return sorted(self._ids, key=self._ids.__getitem__)

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    @property
    def special(self) -> Special:
        """Decoding begins with `pad`."""
        ids = self._ids
        return Special(ids["<pad>"], ids["</s>"], ids["<unk>"], ids["<pad>"])

    def encode(self, text: str) -> list[int]:
        unknown = self._ids["<unk>"]
        pieces = self._processor.encode(text, out_type=str)
        return [self._ids.get(piece, unknown) for piece in pieces]

    def decode(self, ids: Ids) -> str:
        """The text, "<unk>" where unknown."""
        silent = (self.special.pad, self.special.end)
        said = [i for i in known_ids(ids, self.vocab_size) if i not in silent]
        pieces = [self._pieces[i] for i in said]
        return self._processor.decode(pieces)

    def missing(self) -> list[str]:
        """The files that are not there."""
        return [str(path) for path in self._files() if not path.is_file()]

    def prepare(self) -> str:
        """Read both files."""
        return f"{self._processor.get_piece_size()} pieces, {self.vocab_size} ids"


def _require(tokenizer: Preparable) -> None:
    if missing := tokenizer.missing():
        raise UserError(
            f"no {' and no '.join(missing)}: {tokenizer!r} reads it: put it there, or "
            "set its folder to where it is"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}: fetch it again") from error
