import numpy as np
import pytest
from PIL import Image

from research.data.pathfinder import Pathfinder
from research.data.sequences import Join, PixelTokens
from research.data.text import TsvText
from research.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "metadata").mkdir()
    for part in (0, 2, 10):  # by number, not by letters
        (tmp_path / "imgs" / str(part)).mkdir(parents=True)
        lines = []
        for i in range(7):
            path = tmp_path / "imgs" / str(part) / f"sample_{i}.png"
            if (part, i) == (0, 3):
                path.touch()
            else:
                level = 20 * i + part
                Image.fromarray(np.full((4, 4), level, np.uint8)).save(path)
            lines.append(f"imgs/{part} sample_{i}.png {i} {i % 2} 3 4")
        (tmp_path / "metadata" / f"{part}.npy").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_splits_are_the_images_in_order_without_the_empty_one(folder):
    examples = []
    for split, size in (("train", 16), ("validation", 2), ("test", 2)):
        source = Pathfinder(str(folder), split)
        assert len(source) == size and source.missing() == []
        examples += [source[index] for index in range(size)]
    levels = [int(example["image"][0, 0, 0]) for example in examples]
    expected = [20 * i + p for p in (0, 2, 10) for i in range(7) if (p, i) != (0, 3)]
    assert levels == expected
    assert [int(e["label"]) for e in examples][:4] == [0, 1, 0, 0]
    assert examples[0]["image"].shape == (4, 4, 1)


def test_what_is_not_there_and_what_is_no_metadata_is_told(folder, tmp_path):
    assert Pathfinder("nowhere").missing() == ["nowhere/metadata"]
    with pytest.raises(UserError, match="nowhere"):
        len(Pathfinder("nowhere"))
    (tmp_path / "metadata" / "2.npy").write_text("imgs/2 sample_0.png 0 yes\n")
    with pytest.raises(UserError, match=r"line 1 of .*2.npy is .*yes"):
        len(Pathfinder(str(folder)))


def test_pixels_are_tokens_row_by_row():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    tokens = PixelTokens()({"image": image, "label": 1}, RNG)
    np.testing.assert_array_equal(tokens["tokens"], 4 + np.arange(6))
    assert tokens["label"] == 1 and "image" not in tokens
    red = np.zeros((1, 1, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    assert PixelTokens()({"image": red}, RNG)["tokens"] == [4 + 76]


def test_pairs_of_texts_are_joined(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("1\t7\t8\tone text\tanother\n0\t9\t9\ta\tb\n")
    names = ("label", "id1", "id2", "one", "two")
    source = TsvText(str(path), "one", "label", other="two", columns=names)
    assert source[0] == {"text": "one text", "other": "another", "label": 1}
    joined = Join(("a", "b"))({"a": np.array([1]), "b": np.array([2, 3]), "c": 4}, RNG)
    np.testing.assert_array_equal(joined["tokens"], [1, 2, 3])
    assert set(joined) == {"tokens", "c"}
