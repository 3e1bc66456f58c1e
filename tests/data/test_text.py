"""Sources of text on real files: what they read, and what they say of damaged ones."""

import gzip
import pickle
import sys

import numpy as np
import pytest

from research.data.sources import Preparable, Source
from research.data.text import (
    Lines,
    ParallelText,
    StandardLibrary,
    TextFile,
    TextFolder,
    TsvText,
)
from research.data.tokenizers import Bytes, Characters, Words
from research.errors import UserError
from tests.data import texts
from tests.data.texts import ENGLISH, GERMAN


def all_of(source: Source, part: str = "text") -> list:
    return [source[i][part] for i in range(len(source))]


@pytest.fixture
def folder(tmp_path):
    """One of everything."""
    texts.parallel(tmp_path)
    texts.write(tmp_path / "lines.txt", (*ENGLISH, " ", "x"))
    texts.write(tmp_path / "table.tsv.gz", ("sentence\tlabel", "good\t1", "so bad \t0"))
    for name, label in {"pos": "good", "neg": "bad"}.items():
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(10):
            path = tmp_path / "classes" / name / f"{9 - number}.txt"
            path.write_text(f"{label} {9 - number}")
    return tmp_path


def every(folder) -> list:
    return [
        ParallelText(str(folder)),
        Lines(str(folder / "lines.txt")),
        TextFile(str(folder / "lines.txt")),
        TsvText(str(folder / "table.tsv.gz"), "sentence", "label"),
        TextFolder(str(folder / "classes")),
    ]


def test_all_can_be_prepared_and_pickle_as_their_fields(folder):
    for source in (*every(folder), StandardLibrary()):
        assert isinstance(source, Preparable) and source.missing() == []
        fresh = pickle.dumps(source)
        example = source[0]
        assert source.prepare()
        assert pickle.dumps(source) == fresh and len(fresh) < 500
        again = pickle.loads(fresh)
        assert again == source and hash(again) == hash(source)
        assert again[0] == example and len(again) == len(source)


def test_what_is_missing_is_named_at_every_use(folder):
    for source in every(folder / "nowhere"):
        missing = source.missing()
        assert missing and all(str(folder / "nowhere") in path for path in missing)
        for use in (lambda s: s[0], len, lambda s: s.prepare()):
            with pytest.raises(UserError, match="no .*nowhere.*--set data.train"):
                use(source)


# Lines


def test_pairs_of_lines_stay_together(folder):
    source = ParallelText(str(folder))
    assert all_of(source, "source") == list(ENGLISH)
    # U+2028 ends no line: str.splitlines would shift all that follow.
    assert all_of(source, "target") == list(GERMAN)
    back = ParallelText(str(folder), languages=("de", "en"))
    assert back[1] == {"source": GERMAN[1], "target": ENGLISH[1]}


def test_line_ends_of_other_systems_are_no_text(tmp_path):
    texts.write(tmp_path / "val.en", ("a", "b"), ending="\r\n")
    (tmp_path / "val.de").write_text("c\nd")  # no end of line at the end of the file
    source = ParallelText(str(tmp_path), "val")
    assert [source[i] for i in range(len(source))] == [
        {"source": "a", "target": "c"},
        {"source": "b", "target": "d"},
    ]


def test_files_of_two_corpora_are_told(folder):
    texts.write(folder / "train.en", ENGLISH[1:])
    with pytest.raises(UserError, match="train.en has 4 lines but .*de.gz has 5"):
        ParallelText(str(folder)).prepare()


def test_a_plain_file_is_read_before_a_compressed_one(folder):
    texts.write(folder / "train.de", ("plain",) * 5)
    assert ParallelText(str(folder))[0]["target"] == "plain"
    (folder / "train.en").unlink()
    missing = ParallelText(str(folder)).missing()
    assert missing == [str(folder / "train.en.gz")]


def test_damaged_files_are_told(folder):
    (folder / "train.de.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="train.de.gz cannot be read: Not a gzipped"):
        ParallelText(str(folder)).prepare()
    half = gzip.compress("\n".join(GERMAN).encode())[:-20]
    (folder / "train.de.gz").write_bytes(half)
    with pytest.raises(UserError, match="train.de.gz cannot be read: Compressed file"):
        ParallelText(str(folder)).prepare()
    (folder / "train.en").write_bytes(b"a\nb\xff\nc\nd\ne\n")
    texts.write(folder / "train.de.gz", GERMAN)
    assert len(ParallelText(str(folder))) == 5
    with pytest.raises(UserError, match="line 2 of .*train.en is not utf-8: .*0xff"):
        ParallelText(str(folder)).prepare()


def test_blank_lines_are_left_out(folder):
    source = Lines(str(folder / "lines.txt"))
    assert all_of(source) == [line for line in (*ENGLISH, "x") if line]
    (folder / "latin.txt").write_bytes("gr\u00fcn\n".encode("latin-1"))
    path = str(folder / "latin.txt")
    assert Lines(path, encoding="latin-1")[0]["text"] == "gr\u00fcn"
    with pytest.raises(UserError, match="line 1 of .*latin.txt is not utf-8"):
        Lines(path).prepare()
    with pytest.raises(UserError, match="encoding='latn': unknown encoding"):
        Lines(path, encoding="latn").prepare()


# Files


@pytest.mark.parametrize("middle", [0.4, 0.41, 0.42, 0.43])
def test_a_file_can_be_cut_at_a_byte(tmp_path, middle):
    """Even within a character, of which each side has what is there."""
    data = "a\u4e2d\U00010348b".encode() * 10
    (tmp_path / "a.txt").write_bytes(data)
    first, second = (
        TextFile(str(tmp_path / "a.txt"), between, unit="bytes")[0]["text"]
        for between in ((0.0, middle), (middle, 1.0))
    )
    ids = [np.array(Bytes().encode(text)) - 4 for text in (first, second)]
    assert [bytes(part.tolist()) for part in ids] == [
        data[: round(middle * 90)],
        data[round(middle * 90) :],
    ]
    words = Words(({"text": first},), 9)
    assert words.encode(second) and Characters("ab").encode(second)
    (tmp_path / "a.txt").write_bytes(b"a\xff")
    with pytest.raises(UserError, match="a.txt is not utf-8: .*0xff"):
        TextFile(str(tmp_path / "a.txt"), unit="bytes")[0]


def test_a_file_is_one_text_and_parts_of_it_do_not_overlap(tmp_path):
    text = "a\u00e4\u4e2d\r\n" * 200 + "tail"
    path = tmp_path / "input.txt"
    path.write_bytes(text.encode())
    cuts = [0.0, 0.9, 0.95, 1.0]
    parts = [
        TextFile(str(path), between=(start, end))
        for start, end in zip(cuts, cuts[1:], strict=False)
    ]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert "".join(part[0]["text"] for part in parts) == text
    assert len(parts[0][0]["text"]) == round(0.9 * len(text))
    for wrong in ((0.5, 0.5), (0.9, 0.1), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(UserError, match="expected two increasing fractions"):
            TextFile(str(path), between=wrong)


def test_a_folder_is_a_text_for_each_file(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    texts.write(tmp_path / "a.txt.gz", ("first",))
    (tmp_path / "meta.json").write_text("{}")
    source = TextFile(str(tmp_path))
    assert all_of(source) == ["first\n", "second"]
    assert source.prepare() == "12 characters"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no files that end in .txt or"):
        len(TextFile(str(tmp_path / "empty")))


def test_the_standard_library_is_cut_in_two():
    train, test = StandardLibrary(), StandardLibrary("test")
    assert 0.03 < len(test) / (len(train) + len(test)) < 0.25
    names = [
        {path.relative_to(s._root).as_posix() for path in s._files}
        for s in (train, test)
    ]
    assert not names[0] & names[1]
    # On every machine the same files are held out.
    assert {"os.py", "heapq.py", "json/decoder.py"} <= names[0]
    assert {"ast.py", "random.py", "json/encoder.py"} <= names[1]
    for name in names[0] | names[1]:
        assert not {"site-packages", "test", "tests"} & set(name.split("/"))
    version = ".".join(map(str, sys.version_info[:3]))
    assert train.prepare() == f"Python {version}: {len(train)} files"


# Labels


def test_a_table_has_text_and_label(folder):
    source = TsvText(str(folder / "table.tsv.gz"), "sentence", "label")
    assert all_of(source) == ["good", "so bad "]
    assert all_of(source, "label") == [1, 0]
    assert source[0]["label"].dtype == np.int32 and source.prepare() == "2 labels"


def test_a_table_without_names_gets_them(tmp_path):
    path = texts.write(tmp_path / "t.tsv", ("DESC\t7\tWhat is?", "NUM\t8\tHow many?"))
    columns, classes = ("class", "id", "question"), ("NUM", "DESC")
    source = TsvText(str(path), "question", "class", columns, classes)
    assert all_of(source) == ["What is?", "How many?"]
    assert all_of(source, "label") == [1, 0]
    assert all_of(TsvText(str(path), "question", "id", columns), "label") == [7, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": "Sentence"}, "no column 'Sentence': it has sentence, label, extra"),
        ({}, "line 3 of .*t.tsv has 1 columns, expected at least 2"),
        ({"label": "extra"}, "line 2 of .*t.tsv has the label 'x', expected a number"),
        ({"label": "extra", "classes": ("y", "z")}, "'x', expected one of y, z"),
    ],
)
def test_tables_that_are_no_such_thing_are_told(tmp_path, settings, message):
    path = texts.write(tmp_path / "t.tsv", ("sentence\tlabel\textra", "a\t1\tx", "b"))
    names = {"text": "sentence", "label": "label", **settings}
    with pytest.raises(UserError, match=message):
        TsvText(str(path), **names).prepare()


def test_labels_are_the_sorted_folders(folder):
    source = TextFolder(str(folder / "classes"))
    assert source.classes == ("neg", "pos") and len(source) == 20
    assert source[3] == {"text": "bad 3", "label": 0}
    assert source[13] == {"text": "good 3", "label": 1}
    assert source[3]["label"].dtype == np.int32
    assert source.prepare() == "2 classes, 20 files"


def test_folds_are_disjoint_parts_of_each_class(folder):
    path = str(folder / "classes")
    parts = [TextFolder(path, num_folds=4, folds=(fold,)) for fold in range(4)]
    assert sorted(text for part in parts for text in all_of(part)) == sorted(
        all_of(TextFolder(path))
    )
    for part in parts:
        labels = np.bincount(all_of(part, "label"))
        assert labels.min() >= 2 and labels.max() <= 3
    assert all_of(parts[0])[:3] == ["bad 0", "bad 1", "bad 2"]  # in the files' order
    both = TextFolder(path, num_folds=4, folds=(0, 3))
    assert set(all_of(both)) == {*all_of(parts[0]), *all_of(parts[3])}
    for wrong in ((), (4,), (-1,)):
        with pytest.raises(UserError, match="expected some of 0 to 3, as num_folds=4"):
            TextFolder(path, num_folds=4, folds=wrong)


def test_folders_without_texts_are_told(tmp_path):
    with pytest.raises(UserError, match="has no subfolders: expected one a class"):
        len(TextFolder(str(tmp_path)))
    (tmp_path / "pos").mkdir()
    with pytest.raises(UserError, match="pos holds no .txt files"):
        len(TextFolder(str(tmp_path)))
