from typing import Any

import pytest
import torch
from flowfactory import Runtime
from flowfactory.testing import check_model

from flowfactory_newname.model import NewNameConfig


@pytest.mark.parametrize("train", ["full", {"lora": {"rank": 4, "alpha": 8}}])
def test_it_keeps_the_contract(train: Any) -> None:
    # for a model with guidance, once more with guidance=3
    check_model(NewNameConfig(train=train), size=(8, 8))


def test_the_width_is_that_of_the_network() -> None:
    loaded = check_model(NewNameConfig(train="full", width=5), size=(8, 8))
    assert loaded.modules["transformer"].up.out_features == 5


def test_latents_of_pictures_are_those_that_decode_to_them() -> None:
    model = NewNameConfig(train="full").build("model")
    model.load(Runtime(torch.device("cpu"), torch.float32))
    pictures = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(model.encode_media(pictures) / 4 + 0.5, pictures)  # Change: decode as in sample
