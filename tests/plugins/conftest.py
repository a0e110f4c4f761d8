"""For the tests of the algorithm packages: each sees its own package and no other, wherever it is run."""

from pathlib import Path

import pytest

ALGORITHMS = ("awm", "crd", "dpo", "grpo", "nft")


@pytest.fixture(autouse=True)
def no_other_plugin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    name = request.path.relative_to(Path(__file__).parent).parts[0]
    if name in ALGORITHMS:
        monkeypatch.setenv("FLOWFACTORY_PLUGINS", name)
