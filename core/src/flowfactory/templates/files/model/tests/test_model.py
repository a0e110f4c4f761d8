from typing import Any

import pytest
from flowfactory.testing import check_model

from flowfactory_newname.model import NewNameConfig


@pytest.mark.parametrize("train", ["full", {"lora": {"rank": 4, "alpha": 8}}])
def test_it_keeps_the_contract(train: Any) -> None:
    # for a model with guidance, once more with guidance=3
    check_model(NewNameConfig(train=train), size=(8, 8))


def test_the_width_is_that_of_the_network() -> None:
    loaded = check_model(NewNameConfig(train="full", width=5), size=(8, 8))
    assert loaded.modules["transformer"].up.out_features == 5
