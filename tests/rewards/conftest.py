from __future__ import annotations

import pytest

from flowfactory_rewards import http_client


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "FIRST_BACKOFF", 0.02)
