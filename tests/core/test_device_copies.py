from __future__ import annotations

import torch

from flowfactory.device_copies import is_pinned_for, send


def test_what_goes_to_a_gpu_alone_is_pinned() -> None:
    assert [is_pinned_for(device) for device in ("cuda", "cuda:3", "cpu", "meta", torch.device("cuda", 1))] == [
        True,
        True,
        False,
        False,
        True,
    ]


def test_what_stays_on_the_host_is_not_copied() -> None:
    tensor = torch.arange(3)
    assert send(tensor, "cpu") is tensor
