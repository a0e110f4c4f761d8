"""For the tests of DPO and DGPO."""

from collections.abc import Callable
from typing import Any

import pytest

from flowfactory.flow import NoisedBatch


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, str], list[NoisedBatch]]:
    """``watch(DPO, "loss")``: the noised batches that the method is called with from now on."""

    def begin(algorithm: type, name: str) -> list[NoisedBatch]:
        seen: list[NoisedBatch] = []
        method = getattr(algorithm, name)

        def note(self: Any, at: NoisedBatch, policy: Any) -> Any:
            seen.append(at)
            return method(self, at, policy)

        monkeypatch.setattr(algorithm, name, note)
        return seen

    return begin
