"""Mean and covariance of more vectors than fit in memory, and their files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float

from research.errors import UserError


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of feature vectors; the covariance divides by `count - 1`."""

    mean: Float[np.ndarray, " dim"]
    covariance: Float[np.ndarray, "dim dim"]


def feature_moments(parts: Iterable[Float[np.ndarray, "_ dim"]]) -> Moments:
    """Moments over all parts together, holding one part at a time.

    Raises:
      ValueError: fewer than two vectors.
    """
    count, mean, scatter = 0, np.zeros(()), np.zeros(())
    for part in parts:
        if not len(part):
            continue
        part = part.astype(np.float64)
        # Pooling centred parts loses no digits to a large mean, as raw sums would:
        # Chan, Golub & LeVeque (1979), "Updating Formulae and a Pairwise Algorithm".
        total = count + len(part)
        centre = part.mean(0)
        shift = centre - mean
        centred = part - centre
        scatter = scatter + centred.T @ centred
        scatter += np.outer(shift, shift) * (count * len(part) / total)
        mean = mean + shift * (len(part) / total)
        count = total
    if count < 2:
        raise ValueError(f"a covariance needs two vectors or more, got {count}")
    return Moments(mean, scatter / (count - 1))


def save_moments(path: Path, moments: Moments) -> None:
    """Writes an `.npz` with `mu` and `sigma`, the layout of public FID statistics."""
    np.savez(path, mu=moments.mean, sigma=moments.covariance)


def load_moments(path: Path) -> Moments:
    """Reads what `save_moments`, or pytorch-fid, wrote.

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    try:
        # Opened here, because np.load leaves damaged files open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return Moments(file["mu"], file["sigma"])
    except (OSError, KeyError, ValueError, TypeError, BadZipFile) as error:
        raise UserError(
            f"{path} holds no reference statistics ({error}): expected an .npz with "
            "the arrays mu (dim,) and sigma (dim, dim)"
        ) from error
