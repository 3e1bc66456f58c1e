import numpy as np
import pytest
from PIL import Image

from research.data.voc import VOC_CLASSES, Voc
from research.errors import UserError

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<part><name>head</name><bndbox><xmin>9</xmin></bndbox></part>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
</object>"""
SIZE = "<size><width>8</width><height>6</height><depth>3</depth></size>"


def thing(*box, name="cat", difficult=0) -> str:
    return OBJECT.format(*box, name=name, difficult=difficult)


def pixels(number: int) -> np.ndarray:
    return np.full((6, 8, 3), 40 * number, np.uint8)


@pytest.fixture
def folder(tmp_path):
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("b\na -1\n\nc\n")
    write(tmp_path, "a", SIZE + thing(1, 1, 8, 6, name="dog") + thing(2, 3, 4, 5))
    write(tmp_path, "b", SIZE + thing(2, 2, 3, 3, difficult=1))
    write(tmp_path, "c", "")
    return tmp_path


def write(folder, stem: str, content: str) -> None:
    path = folder / "Annotations" / f"{stem}.xml"
    path.write_text(f"<annotation><filename>x</filename>{content}</annotation>")
    Image.fromarray(pixels("abc".index(stem))).save(
        folder / "JPEGImages" / f"{stem}.jpg", quality=100
    )


def test_objects_are_read_in_the_order_of_the_list(folder):
    source = Voc(str(folder), classes=("dog", "cat"))
    assert source.missing() == [] and source.names == {0: "dog", 1: "cat"}
    b, a, c = (source[i] for i in range(len(source)))
    for example, number in ((a, 0), (b, 1), (c, 2)):
        np.testing.assert_array_equal(example["image"], pixels(number))
    assert [e["image_id"] for e in (b, a, c)] == [0, 1, 2]
    # The first pixel is 1, and the last is inside.
    assert a["boxes"].tolist() == [[0, 0, 8, 6], [1, 2, 4, 5]]
    assert a["areas"].tolist() == [48, 9] and a["classes"].tolist() == [0, 1]
    assert not a["crowd"].any() and b["crowd"].tolist() == [True]
    assert c["boxes"].shape == (0, 4) and c["areas"].shape == (0,)
    kinds = {name: part.dtype.name for name, part in c.items()}
    assert kinds == {
        "image": "uint8",
        "image_id": "int32",
        "boxes": "float32",
        "classes": "int32",
        "crowd": "bool",
        "areas": "float32",
    }
    # c has no size in its file.
    assert source.annotation(2)["size"].tolist() == [6, 8]
    assert source.prepare() == (
        "3 objects: 1 crowds or difficult, 0 without area, 0 beyond the border; "
        "1 images without objects"
    )


def test_difficult_objects_and_edges_from_zero(folder):
    source = Voc(str(folder), classes=("dog", "cat"), difficult=True, one_based=False)
    assert source[0]["crowd"].tolist() == [False]
    assert source[0]["boxes"].tolist() == [[2, 2, 3, 3]]


def test_the_classes_are_those_of_voc():
    assert len(VOC_CLASSES) == 20 and list(VOC_CLASSES) == sorted(VOC_CLASSES)


def test_what_is_not_there_is_named(folder):
    with pytest.raises(UserError, match="no .*ImageSets/Main/val.txt: .*train.folder="):
        len(Voc(str(folder), "val"))
    source = Voc(str(folder), classes=("dog", "cat"))
    (folder / "JPEGImages/a.jpg").unlink()
    with pytest.raises(UserError, match="no .*a.jpg, which .*train.txt names"):
        source.prepare()
    (folder / "Annotations/b.xml").unlink()
    with pytest.raises(UserError, match="b.xml cannot be read as XML"):
        source[0]
    (folder / "ImageSets/Main/none.txt").write_text("\n")
    with pytest.raises(UserError, match="none.txt names no images"):
        len(Voc(str(folder), "none"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SIZE + thing(1, 1, 2, 2, name="cow"), "object 'cow', which is .*: dog, cat"),
        (SIZE + thing(1, 1, "two", 2), "a.xml has bndbox/xmax 'two' in <object>"),
        (SIZE + "<object><name>cat</name></object>", "has bndbox/xmin None in <object"),
        (
            SIZE.replace("8", "9"),
            "is 6 pixels high and 8 wide, but .*a.xml is of 6 and",
        ),
        ("<object>", "a.xml cannot be read as XML: mismatched tag"),
    ],
)
def test_damaged_files_are_told(folder, content, message):
    write(folder, "a", content)
    with pytest.raises(UserError, match=message):
        Voc(str(folder), classes=("dog", "cat"))[1]
