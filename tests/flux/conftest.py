"""What the tests of the FLUX models share."""

from __future__ import annotations

import pytest
from flux_family import Flux


@pytest.fixture(scope="session")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Flux:
    """Checkpoints, pipelines, pictures and models, each made once."""
    return Flux(tmp_path_factory.mktemp("flux"))
