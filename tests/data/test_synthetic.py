import pickle

import numpy as np

from research.data.synthetic import MixturePoints


def test_points_follow_the_mixture_and_their_seed():
    source = MixturePoints(20_000, seed=3)
    points = np.stack([source[i]["x"] for i in range(len(source))])
    assert points.shape == (20_000, 2) and points.dtype == np.float32
    heavy = points.sum(axis=1) > 0
    np.testing.assert_allclose(heavy.mean(), 0.8, atol=0.01)
    np.testing.assert_allclose(points[heavy].mean(axis=0), [5, 5], atol=0.05)
    np.testing.assert_allclose(points[heavy].std(axis=0), 1, rtol=0.02)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[17]["x"], points[17])
    assert not np.array_equal(MixturePoints(20_000, seed=4)[17]["x"], points[17])
