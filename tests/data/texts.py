"""Texts for tests: tiny files, and characters of every kind."""

import gzip
from pathlib import Path

import numpy as np

ENGLISH = (
    "A man sleeps in a green room.",
    "Two dogs run, and a boy runs after them!",
    "The boy's hat costs 1,500.50 -- too much...",
    "",
    "A well-known man eats.",
)
GERMAN = (
    "Ein Mann schläft in einem grünen Raum.",
    "Zwei Hunde rennen, und ein Junge rennt ihnen nach!",
    "Der Hut des Jungen kostet 1.500,50 -- zu viel\u2028...",
    "",
    "Ein bekannter Mann isst.",
)


def unicode_texts(number: int, seed: int = 0) -> list[str]:
    """Random texts of characters from all planes, half of them ASCII."""
    rng = np.random.default_rng(seed)
    result = [
        "",
        "\0",
        "\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff",
        " \t\r\n\u2028",
    ]
    for length in rng.integers(1, 60, number - len(result)):
        points = np.where(
            rng.random(length) < 0.5,
            rng.integers(0, 0x80, length),
            rng.integers(0x80, 0x110000, length),
        )
        # Surrogates are no characters.
        result.append("".join(chr(p) for p in points if not 0xD800 <= p < 0xE000))
    return result


def write(path: Path, lines: tuple[str, ...], ending: str = "\n") -> Path:
    """A file of lines, compressed if its name says so."""
    data = "".join(line + ending for line in lines).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def parallel(folder: Path) -> Path:
    """A folder with five pairs of lines, one side compressed."""
    write(folder / "train.en", ENGLISH)
    write(folder / "train.de.gz", GERMAN)
    return folder
