"""For all tests."""

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def swept() -> None:
    """Collecting garbage, as every encoding does, need not look at what was imported."""
    gc.collect()
    gc.freeze()
