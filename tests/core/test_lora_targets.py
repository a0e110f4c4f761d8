from __future__ import annotations

import pytest
from torch import nn

from flowfactory.config.component import LoraConfig
from flowfactory.errors import RunError
from flowfactory.lora_targets import kinds_of, linear_endings, unadaptable
from flowfactory.policy import lora


def transformer() -> nn.Module:
    """Two kinds of blocks that call unlike things by one name, as Flux.2 does, and layers of every kind."""
    two = nn.ModuleDict({"to_q": nn.Linear(4, 4), "to_out": nn.ModuleList([nn.Linear(4, 4), nn.Dropout(0.0)])})
    one = nn.ModuleDict({"to_q": nn.Linear(4, 4), "to_out": nn.Linear(4, 4), "norm2": nn.LayerNorm(4)})
    others = {
        "patch": nn.Conv2d(3, 4, 2),
        "frames": nn.Conv3d(3, 4, 2),
        "wave": nn.Conv1d(3, 4, 2),
        "places": nn.Embedding(6, 4),
    }
    return nn.ModuleDict({"two": two, "one": one, **others, "mixes": nn.MultiheadAttention(4, 2)})


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (
            ["to_q", "to_out"],
            "'to_out' names two.to_out (ModuleList), which LoRA cannot adapt; write some of to_out.0, one.to_out instead",
        ),
        (
            ["two.to_out"],
            "'two.to_out' names two.to_out (ModuleList), which LoRA cannot adapt; write two.to_out.0 instead",
        ),
        (["norm2", "to_q"], "'norm2' names one.norm2 (LayerNorm), which LoRA cannot adapt; leave it out"),
        (["to_out.1"], "'to_out.1' names two.to_out.1 (Dropout), which LoRA cannot adapt; leave it out"),
    ],
)
def test_what_takes_no_adapter_is_named_with_what_does(targets: list[str], told: str) -> None:
    assert unadaptable(dict(transformer().named_modules()), targets) == told
    with pytest.raises(RunError) as refused:
        lora.add_adapters(transformer(), LoraConfig(targets=targets), (), 0)
    assert str(refused.value) == f"model.train.lora.targets: {told}"


def test_a_message_has_room_for_a_few_names() -> None:
    block = nn.ModuleDict({"block": nn.Sequential(*(nn.Linear(2, 2) for _ in range(9)))})
    told = unadaptable(dict(block.named_modules()), ["block"])
    assert told is not None
    assert told.endswith("; write some of block.0, block.1, block.2, block.3, … instead")


def test_what_peft_adapts_is_let_through() -> None:
    targets = ["to_q", "to_out.0", "one.to_out", "patch", "frames", "wave", "places", "mixes"]
    module = transformer()
    assert unadaptable(dict(module.named_modules()), targets) is None
    found = lora.add_adapters(module, LoraConfig(rank=2, targets=targets), (), 0)
    assert {"patch", "frames", "wave", "places", "mixes", "two.to_q", "one.to_q", "two.to_out.0", "one.to_out"} <= {*found}


def test_what_peft_says_of_a_layer_is_told() -> None:
    module = nn.ModuleDict({"mixes": nn.MultiheadAttention(4, 2, kdim=6)})
    with pytest.raises(
        RunError, match=r"^model\.train\.lora\.targets: Only same embed for query/key/value .*; name other layers$"
    ):
        lora.add_adapters(module, LoraConfig(rank=2, targets=["mixes"]), (), 0)


def test_names_that_are_offered_take_adapters() -> None:
    layers = dict(transformer().named_modules())
    assert linear_endings(layers) == {"to_q", "to_out.0", "out_proj"}  # to_out is a list, too


def test_adapted_layers_are_told_by_endings_that_mean_something() -> None:
    inside = ("attn.to_q", "attn.add_k_proj", "attn.to_out.0", "ff.net.0.proj", "ff.net.2", "proj_mlp")
    layers = [f"transformer_blocks.{block}.{name}" for block in range(2) for name in inside]
    assert kinds_of([*layers, "x_embedder"]) == [
        *("add_k_proj", "attn.to_out.0", "ff.net.0.proj", "ff.net.2", "proj_mlp", "to_q", "x_embedder")
    ]
    assert kinds_of(["0", "2"]) == ["0", "2"]
    assert kinds_of(["net.0", "net.2"]) == ["net.0", "net.2"]
