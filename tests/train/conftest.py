"""FSDP splits every leaf here, so that networks of a few numbers test it."""

import pytest

from research.train import sharding


@pytest.fixture(autouse=True)
def no_leaf_is_small(monkeypatch):
    monkeypatch.setattr(sharding, "SMALL", 0)
