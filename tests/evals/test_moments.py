import numpy as np
import pytest

from research.errors import UserError
from research.evals.moments import (
    Moments,
    feature_moments,
    load_moments,
    save_moments,
)


def test_streams_what_numpy_computes_at_once():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + 1e6
    moments = feature_moments([x[:1], x[1:20], x[20:20], x[20:]])
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T), rtol=1e-9)


def test_float32_features_are_summed_in_float64():
    x = np.random.default_rng(0).normal(1000, 1, (4000, 2)).astype(np.float32)
    moments = feature_moments(np.array_split(x, 7))
    exact = np.cov(x.T.astype(np.float64))
    np.testing.assert_allclose(moments.covariance, exact, rtol=1e-10)


def test_needs_two_vectors():
    with pytest.raises(ValueError, match="two"):
        feature_moments([np.ones((1, 3))])


def test_files(tmp_path):
    moments = Moments(np.arange(3.0), np.eye(3))
    save_moments(tmp_path / "statistics.npz", moments)
    again = load_moments(tmp_path / "statistics.npz")
    np.testing.assert_array_equal(again.mean, moments.mean)
    np.testing.assert_array_equal(again.covariance, moments.covariance)


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", mean=np.ones(3))
    np.save(tmp_path / "array.npy", np.ones(3))
    np.savez(tmp_path / "objects.npz", mu=np.array([{}]), sigma=np.ones(1))
    (tmp_path / "text.npz").write_text("mu")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:60])
    for name in ("other.npz", "array.npy", "objects.npz", "text.npz", "cut.npz", "no"):
        with pytest.raises(UserError, match=name):
            load_moments(tmp_path / name)
