"""Exports of a model that is no diffusers pipeline, and what every card says."""

from __future__ import annotations

import ast
import copy
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cards
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from saved import stored, weights
from torch import Tensor, nn

from flowfactory import Policy, Trainable, flow
from flowfactory.atomic_files import make_temporary_folder
from flowfactory.config.component import AlgorithmConfig, LoraConfig, LoraTraining, ModelConfig
from flowfactory.config.schema import RunConfig
from flowfactory.errors import UserError
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.export.adapters import write_formatted
from flowfactory.runs.export.card import Exported, make_card
from flowfactory.runs.export.export import export
from flowfactory.runs.export.origin import Origin, find_origin
from flowfactory.training.setup import Run

Trained = Callable[..., RunDirectory]
Prepared = Callable[..., Run]
Load = Callable[..., RunConfig]
LORA = {"lora": {"rank": 2, "alpha": 3}}


def inputs() -> Tensor:
    return torch.randn(5, 18, generator=torch.Generator().manual_seed(1))


def test_a_fully_trained_module_is_loaded_by_the_code_of_its_card(
    trained: Trained, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"model": {"name": "net", "train": "full"}}
    directory = trained(model)
    out = export(directory, tmp_path / "out", None, None, None)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "transformer"]
    module: Any = prepared(model).policy.modules["transformer"]
    before = module(inputs())
    found = cards.run_code(out, monkeypatch, transformer=module)["transformer"]
    assert not torch.allclose(found(inputs()), before)
    last = weights(directory.checkpoints / "000003")
    assert all(torch.equal(weight, last[f"transformer.{name}"]) for name, weight in found.state_dict().items())
    assert "pipeline" not in cards.head(out).get("library_name", "")
    assert "no diffusers pipeline" in (out / "README.md").read_text()
    assert "from_pretrained" not in (out / "README.md").read_text()


@pytest.mark.parametrize("form", [None, "peft"])
@pytest.mark.parametrize("name", ["net", "experts"])
def test_adapters_of_a_module_are_loaded_by_the_code_of_its_card(
    trained: Trained, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: str | None
) -> None:
    directory = trained({"model": {"name": name, "train": LORA}})
    out = export(directory, tmp_path / "out", None, None, None, form)
    bare = prepared({"model": {"name": name, "train": "full"}}).policy.modules
    before = {key: module(inputs()) for key, module in bare.items()}
    found = cards.run_code(out, monkeypatch, **bare)
    assert cards.head(out)["library_name"] == "peft"
    ours = weights(directory.checkpoints / "000003")
    assert any(not torch.allclose(found[key](inputs()), before[key], atol=1e-4) for key in bare)
    for key in bare:
        torch.testing.assert_close(found[key](inputs()), by_hand(bare[key], key, ours), rtol=1e-5, atol=1e-5)


class Mixed(nn.Module):
    """Layers of every kind that adapters go on."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.places, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Embedding(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.patch(x).flatten(2).transpose(1, 2) + self.places(torch.arange(6))
        found: Tensor = self.down(hidden.tanh())
        return found


def test_adapters_of_convolutions_and_embeddings_are_exported_too(load: Load, tmp_path: Path) -> None:
    from peft import PeftModel

    torch.manual_seed(0)
    module, x = Mixed(), torch.randn(2, 3, 2, 3)
    bare = copy.deepcopy(module)
    training = LoraTraining(lora=LoraConfig(rank=2, alpha=3.0))
    trainable = Trainable({"transformer": module}, training, ("patch", "places", "down"), (), "", guided=False)
    policy = Policy(trainable, lambda step: flow.evaluate(step.latents, step), torch.device("cpu"))
    for parameter in policy.parameters.values():
        nn.init.normal_(parameter)
    with stored(policy) as modules:
        write_formatted(modules, tmp_path, "peft", load().model, Origin("net", False), "title")
        assert {entry.name for entry in modules[0].folded_entries()} == {
            *(f"{layer}.lora_{factor}.weight" for layer in ("patch", "down") for factor in "AB"),
            *(f"places.lora_embedding_{factor}" for factor in "AB"),
        }
    trained, plain = module(x), bare(x)
    assert not torch.allclose(trained, plain, atol=0.1)
    torch.testing.assert_close(PeftModel.from_pretrained(bare, str(tmp_path))(x), trained, rtol=1e-5, atol=1e-5)


def by_hand(module: nn.Module, name: str, trained: dict[str, Tensor]) -> Tensor:
    """The net with alpha / rank times the product of each layer's trained factors added to its weight."""
    layers: Any = module
    hidden = inputs()
    for number in (0, 2):
        layer = getattr(layers[number], "base_layer", layers[number])
        down, up = (trained[f"{name}.{number}.lora_{factor}.default.weight"] for factor in "AB")
        hidden = hidden @ (layer.weight + 3 / 2 * up @ down).T + layer.bias
        hidden = hidden.tanh() if number == 0 else hidden
    return hidden


@pytest.mark.parametrize(
    ("train", "form", "sentence"),
    [
        (LORA, "diffuser", "--format diffuser: write one of diffusers, comfyui, peft"),
        (LORA, "diffusers", "--format diffusers: net is no diffusers pipeline; write --format peft"),
        (LORA, "comfyui", "--format comfyui: net is no diffusers pipeline; write --format peft"),
        ("full", "peft", "--format peft is for adapters, and this run trained all weights; leave it out"),
        ("full", "comfyui", "--format comfyui is for adapters, and this run trained all weights; leave it out"),
        (
            "full",
            "diffusers",
            "--format diffusers: net is no diffusers pipeline; leave it out, which writes its weights alone",
        ),
    ],
)
def test_a_format_that_the_run_has_nothing_in_is_refused_before_weights_are_read(
    load: Load, tmp_path: Path, train: Any, form: str, sentence: str
) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.open(load({"model": {"name": "net", "train": train}}), resume=False)
    with pytest.raises(UserError) as refused:
        export(directory, tmp_path / "out", None, None, None, form)
    assert str(refused.value) == sentence


def test_what_is_there_is_never_written_over(trained: Trained, tmp_path: Path) -> None:
    directory = trained()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out already exists; choose another folder$"):
        export(directory, tmp_path / "out", None, None, None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"below cannot be written: .*; choose another folder$"):
        export(directory, tmp_path / "file/below", None, None, None)
    with pytest.raises(UserError, match="keeps no weights called 'ema'"):
        export(directory, tmp_path / "other", None, "ema", None)
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "other").exists()


def test_what_a_killed_export_left_goes_with_the_next_a_day_later(trained: Trained, tmp_path: Path) -> None:
    directory = trained({"training": {"iterations": 1}})
    old, young = make_temporary_folder(tmp_path), make_temporary_folder(tmp_path)
    mine = tmp_path / ".out.settings"
    mine.mkdir()
    (old / "weights").touch()
    for path in (old, mine):
        os.utime(path, times=(time.time() - 90_000,) * 2)
    export(directory, tmp_path / "out", None, None, None)
    assert (old.exists(), young.exists(), mine.exists()) == (False, True, True)


RECORDS = [
    {"iteration": 0, "eval/bright/mean": 0.49331, "eval/bright/std": 0.0022, "eval/large/mean": 21.534, "eval/samples": 2},
    {"iteration": 1, "reward/bright/mean": 0.7},
    {"iteration": 20, "eval/bright/mean": 0.61, "eval/bright/std": 0.1, "eval/large/mean": -1234.5, "eval/samples": 2},
    {"iteration": 40, "eval/bright/mean": 0.48471, "eval/bright/std": 0.0042, "eval/large/mean": 0.00001, "eval/samples": 2},
    {"iteration": 60, "eval/bright/mean": 0.9, "eval/bright/std": 0.0042, "eval/large/mean": 1e9, "eval/samples": 2},
]


def test_a_row_of_the_scores_is_a_label(load: Load) -> None:
    text = make_card("run", RECORDS, load(), Origin("net", False), Exported(45, None, "peft", {"transformer": Path("a")}))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        "| reward | before training | after iteration 40 | best (after iteration) |",
        "|---|---|---|---|",
        "| bright | 0.4933 | 0.4847 | 0.6100 (20) |",
        "| large | 21.53 | 1e-05 | 21.53 (0) |",
    ]
    assert "kept as" not in text
    ema = load({"evaluation": {"ema": {"name": "constant", "decay": 0.5}}})
    text = make_card("run", RECORDS, ema, Origin("net", False), Exported(45, None, "peft", {"transformer": Path("a")}))
    assert "not trained on, drawn with the weights kept as `evaluation`:" in text


def test_a_run_without_held_out_prompts_has_no_scores(load: Load) -> None:
    records = [{"iteration": 0}, {"iteration": 1, "reward/bright/mean": 0.5}]
    text = make_card("run", records, load(), Origin("net", False), Exported(1, None, "peft", {"transformer": Path("a")}))
    assert "before training" not in text


def test_a_card_tells_no_place_of_the_machine_that_it_was_made_on(trained: Trained, tmp_path: Path) -> None:
    fence = {"prompts": {"negative": "a ``` b"}}
    out = export(trained(fence), tmp_path / "out", None, None, None)
    text = (out / "README.md").read_text()
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text
    assert "````yaml" in text
    (out / "README.md").write_text(text.replace("````", "```").replace("a ``` b", "x"))
    assert cards.config(out)["prompts"]["train"] == "train.txt"
    assert set(cards.config(out)) == {
        *("model", "algorithm", "rewards", "prompts", "sampling"),
        *("advantages", "training", "evaluation", "seed"),
    }


def test_a_server_is_not_told(load: Load) -> None:
    made = load({"rewards": {"bright": {"name": "bright", "refuses": "http://10.0.0.7:8000/score"}}})
    text = make_card("run", [], made, Origin("net", False), Exported(1, None, "peft", {"transformer": Path("a")}))
    assert "10.0.0.7" not in text
    assert "refuses: a server" in text


def test_a_hub_reads_the_head_of_a_card(load: Load) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not here")
    origin = Origin("owner/base", True, hub=True, licence=(("license", "apache-2.0"),))
    full = load({"model": {"name": "net", "train": "full"}})
    adapters = load({"model": {"name": "net"}})
    for made, form, relation in ((adapters, "peft", "adapter"), (full, "diffusers", "finetune")):
        text = make_card("run", [], made, origin, Exported(3, None, form, {"transformer": Path("a")}))
        head = ModelCard(text).data
        assert (head.base_model, head.base_model_relation, head.license) == ("owner/base", relation, "apache-2.0")
        assert (head.library_name, head.pipeline_tag) == (form, "text-to-image")
        assert "[`owner/base`](https://huggingface.co/owner/base)" in text
        assert 'from_pretrained("owner/base")' in text or made is full
        assert "state a licence" not in text
    unknown = make_card("run", [], adapters, Origin("owner/base", True, hub=True), Exported(3, None, "peft", {}))
    assert "Before you publish this, state a licence in the head of this file" in unknown


@pytest.mark.parametrize(
    ("traits", "ways"),
    [
        ({}, "reinforcement learning"),
        ({"rewarded": False, "learns_from": "targets"}, "supervised fine-tuning"),
        ({"rewarded": False, "learns_from": "pairs"}, "preference optimization"),
        ({"rewarded": False}, "distillation"),
        ({"rewarded": False, "taught_by_base": True}, "distillation"),
        ({"taught_by_base": True}, "distillation and reinforcement learning"),
    ],
    ids=str,
)
def test_a_card_calls_the_way_of_training_by_its_name(traits: dict[str, Any], ways: str, load: Load) -> None:
    config = load({"sampling": {"guidance": 1, "steps": 4, "size": [32, 48]}})
    way = type("Way", (AlgorithmConfig,), {"build": lambda self, label: self})
    for name, trait in traits.items():
        setattr(way, name, trait)
    config = config.model_copy(update={"algorithm": way()})
    text = make_card("run", [], config, Origin("net", False), Exported(3, None, "peft", {"transformer": Path("a")}))
    tags = yaml.safe_load(text.split("---")[1])["tags"]
    assert tags[1 : tags.index("Way")] == [way.replace(" ", "-") for way in ways.split(" and ")]
    assert f"trained with flowfactory by {ways}: 3 iterations of `Way`." in text
    assert ("Rewards: " in text) == traits.get("rewarded", True)
    who = "It is a student that draws" if "taught_by_base" in traits else "Its evaluations drew"
    assert f"{who} in 4 steps under guidance 1, 32 x 48 pixels (height x width)." in text


def test_a_card_tells_that_what_training_began_with_is_inside(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    told = {}
    for way in ("base", "start"):
        made = load({"model": {"name": "net", "train": {"lora": {"from": str(tmp_path / "a.safetensors"), "as": way}}}})
        exported = Exported(3, None, "peft", {"transformer": Path("a")})
        told[way] = "They contain the adapters that training began with" in make_card(
            "run", [], made, Origin("b", True), exported
        )
    assert told == {"base": True, "start": False}


class OnHub(ModelConfig):
    """Options of a model that a hub has."""

    path: str

    def build(self, label: str) -> object:
        return object()


HOSTILE_CARDS = (
    "---\nlicense: &a [*a]\n---\n",
    "---\na0: &a0 [x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    + "license: *a29\n---\n",
    "---\nlicense: " + "[" * 100_000 + "\n---\n",
    "---\nlicense: " + "1" * 5000 + "\n---\n",
    "---\nlicense: !!python/object/apply:os.getcwd []\n---\n",
    "---\nlicense: mit\n---\n" + "x" * (4 * 2**20),
)
"""Heads that hold themselves, would fill memory, or execute something; and a card of more bytes than one has."""


def test_the_licence_of_the_base_is_handed_on(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "Other"}')
    known = Origin(
        "base",
        True,
        licence=(("license", "other"), ("license_name", "flux-dev")),
        index={"_class_name": "Other"},
    )
    (folder / "README.md").write_text(
        "---\nlicense: other\nlicense_name: flux-dev\nlicense_link: LICENSE.md\ntags: [a]\n---\n# Base\n"
    )
    assert find_origin(OnHub(path=str(folder))) == known
    snapshot = tmp_path / "hub/models--owner--base/snapshots/0123abc"
    shutil.copytree(folder, snapshot)
    found = find_origin(OnHub(path=str(snapshot)))
    assert (found.name, found.hub, found.pipeline) == ("owner/base", True, True)
    assert found.licence[-1] == ("license_link", "https://huggingface.co/owner/base/blob/main/LICENSE.md")
    for text in ("# Base, without a head\n", "---\n[a\n---\n", "---\n- a\n---\n", "---\nlicense: mit\n", *HOSTILE_CARDS):
        (folder / "README.md").write_text(text)
        assert find_origin(OnHub(path=str(folder))).licence == ()


@pytest.mark.parametrize("path", ["weights.pt", "/data/weights.pt", "some/weights.pt"])
def test_a_path_to_something_else_is_told_by_the_name_of_the_model(path: str) -> None:
    assert find_origin(OnHub(path=path)) == Origin("OnHub", pipeline=False)


def test_adapters_hold_the_numbers_of_the_weights_that_are_asked_for(trained: Trained, tmp_path: Path) -> None:
    directory = trained({"model": {"name": "net", "train": LORA}, "evaluation": {"ema": {"name": "constant", "decay": 0.5}}})
    present = export(directory, tmp_path / "present", None, None, None)
    average = export(directory, tmp_path / "average", None, "evaluation", None)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (present, average))
    assert set(one) == set(other)
    assert any(not torch.equal(weight, other[name]) for name, weight in one.items())


def test_names_of_others_are_names_and_nothing_else_in_a_card(load: Load) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not here")
    folder = 'x"); __import__("os").system("touch executed")  #\n```\n# Title\n`<script>'
    label = "a`\n\n---\nlicense: mit\n---\n# Title\n`"
    records = [{"iteration": n, f"eval/{label}/mean": 0.5} for n in (0, 1)]
    pipeline = Origin(folder, True, index={"_class_name": "StableDiffusion3Pipeline"})
    for origin in (pipeline, Origin(folder, False)):
        text = make_card("run\n# Title", records, load(), origin, Exported(3, None, "peft", {"transformer": Path("a")}))
        head = yaml.safe_load(text.split("---\n")[1])
        assert "license" not in head
        assert [line for line in text.splitlines() if line.startswith("# ")] == ["# run # Title"]
        assert text.count("| a\\` --- license: mit --- # Title \\` | 0.5000 |") == 1
        (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        called = [ast.unparse(node.func) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        assert set(called) <= {
            *("DiffusionPipeline.from_pretrained", "PeftModel.from_pretrained"),
            *("load_file", "transformer.load_state_dict"),
        }
        assert "<script>" not in re.sub(r"`[^`\n]*`|^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large", "list", "long", "bomb", "deep"])
def test_the_licence_of_an_odd_card_is_not_handed_on(kind: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "Other"}')
    card = tmp_path / "README.md"
    texts = {
        "large": "---\nlicense: mit\n---\n" + "#" * (17 * 2**20),
        "list": "---\nlicense: [mit, {a: b}]\nlicense_name: 7\n---\n",
        "long": f"---\nlicense: {'a' * 10_000}\n---\n",
        "bomb": "---\na: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\nlicense: *d\n---\n",
        "deep": f"---\nlicense: {'[' * 5000}\n---\n",
    }
    if kind == "pipe":
        os.mkfifo(card)
    elif kind == "device":
        card.symlink_to("/dev/zero")
    elif kind == "folder":
        card.mkdir()
    else:
        card.write_text(texts[kind])
    assert find_origin(OnHub(path=str(tmp_path))).licence == ()
