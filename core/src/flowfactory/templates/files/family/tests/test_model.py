from typing import Any

import pytest
from flowfactory.testing import check_model

from flowfactory_newname.model import NewNameConfig


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("train", ["full", {"lora": {"rank": 4, "alpha": 8}}])
def test_it_keeps_the_contract(checkpoint: str, train: Any, guidance: float) -> None:
    config = NewNameConfig(path=checkpoint, train=train, max_sequence_length=16)
    check_model(config, ("cat", "a photo of a red circle"), guidance=guidance)
