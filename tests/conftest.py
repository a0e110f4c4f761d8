"""For all tests."""

import gc
import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def swept() -> None:
    """Collecting garbage, as every encoding does, need not look at what was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What runs were trained with is noted in no folder of whoever runs the tests."""
    os.environ["FLOWFACTORY_STATE"] = str(tmp_path_factory.mktemp("state"))
