"""What a config may not say, and what bf16 changes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_flux
import torch
from families import LORA
from flux_family import EVERY, NAMES, TOKENS, Flux, make_config

from flowfactory import Runtime, UserError
from flowfactory.config.component_slots import config_class
from flowfactory.config.loading import validate
from flowfactory.config.yaml import parse_yaml
from flowfactory.data.prompts import check_media, read_prompts
from flowfactory.discovery.discover import discover
from flowfactory.testing import bench
from flowfactory.testing.two_parameter import FILE

REINFORCE = Path(tiny_flux.__file__).with_name("policy_gradient.py")
CELLS = {"dev": 4, "kontext": 16, "flux2": 16, "klein": 16}
EXAMPLES = ("flux1", "flux1-kontext", "flux2", "flux2-klein")


def settings(variant: str, path: Path | str, **sections: dict[str, Any]) -> dict[str, Any]:
    """A config as a mapping, with ``sections`` on top."""
    raw: dict[str, Any] = {
        "model": {
            "name": NAMES.get(variant, variant),
            "path": str(path),
            "max_sequence_length": TOKENS[variant],
            "train": LORA,
        },
        "algorithm": "reinforce",
        "rewards": {"light": "bright"},
        "prompts": {"train": str(REINFORCE)},
        "sampling": {"groups": 2, "group_size": 2, "size": [64, 32], "steps": 3, "batch_size": 4, "dynamics": "ode"},
        "training": {"iterations": 2, "batch_size": 4},
        "plugins": [FILE, str(REINFORCE)],
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    return raw


@pytest.mark.parametrize("section", ["sampling", "evaluation"])
@pytest.mark.parametrize("variant", CELLS)
def test_a_size_the_model_cannot_draw_is_refused_with_the_nearest(flux: Flux, variant: str, section: str) -> None:
    cell, folder = CELLS[variant], flux.folder(variant)
    nearest = [4 * cell, 2 * cell]
    size = [4 * cell + 1, 2 * cell - 1]
    with pytest.raises(UserError, match=rf"{section}\.size {re.escape(str(size))}.*nearest is {re.escape(str(nearest))}$"):
        validate(settings(variant, folder, **{section: {"size": size}}))
    assert validate(settings(variant, folder, **{section: {"size": nearest}}))


def test_without_a_checkpoint_at_hand_the_released_grid_holds() -> None:
    hub = "black-forest-labs/not-on-this-machine"
    assert validate(settings("dev", hub, sampling={"size": [48, 32], "guidance": 3.5}))
    with pytest.raises(UserError, match=r"nearest is \[48, 32\]"):
        validate(settings("dev", hub, sampling={"size": [52, 32]}))


@pytest.mark.parametrize("variant", EVERY)
def test_guidance_is_refused_where_a_checkpoint_has_none(flux: Flux, variant: str) -> None:
    raw = settings(variant, flux.folder(variant), sampling={"guidance": 3.5})
    if variant not in ("schnell", "klein"):
        assert validate(raw)
        return
    with pytest.raises(UserError, match=r"sampling\.guidance 3\.5: this checkpoint is distilled and takes none; write 1"):
        validate(raw)
    assert validate(settings(variant, flux.folder(variant)))


@pytest.mark.parametrize("variant", EVERY)
def test_only_klein_base_takes_a_negative_prompt(flux: Flux, variant: str) -> None:
    config = validate(settings(variant, flux.folder(variant)))
    assert config.model.takes_negatives() == (variant == "klein-base")


@pytest.mark.parametrize("variant", EVERY)
def test_frames_are_refused(flux: Flux, variant: str) -> None:
    with pytest.raises(UserError, match=r"sampling\.frames: this model draws pictures; leave it out"):
        validate(settings(variant, flux.folder(variant), sampling={"frames": 5}))


@pytest.mark.parametrize(
    ("variant", "images", "wanted"),
    [
        ("dev", 0, None),
        ("dev", 1, "brings 1 images, and model 'flux1' takes 0"),
        ("kontext", 0, "brings 0 images, and model 'flux1-kontext' takes 1; write"),
        ("kontext", 1, None),
        ("kontext", 2, "brings 2 images, and model 'flux1-kontext' takes 1"),
        ("flux2", 0, None),
        ("flux2", 10, None),
        ("flux2", 11, "brings 11 images, and model 'flux2' takes 0 to 10"),
        ("klein", 11, None),
    ],
)
def test_a_prompt_brings_as_many_pictures_as_the_model_takes(
    flux: Flux, tmp_path: Path, variant: str, images: int, wanted: str | None
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "cat", "images": [str(flux.pictures[0])] * images}))
    config = make_config(variant, flux.folder(variant))
    if wanted is None:
        check_media(read_prompts(file), config.takes, NAMES.get(variant, variant))
        return
    with pytest.raises(UserError, match=re.escape(wanted)):
        check_media(read_prompts(file), config.takes, NAMES.get(variant, variant))


@pytest.mark.parametrize(
    ("variant", "other", "wanted"),
    [
        ("dev", "kontext", "holds a FluxKontextPipeline; this model reads FluxPipeline"),
        ("kontext", "dev", "holds a FluxPipeline; this model reads FluxKontextPipeline"),
        ("flux2", "klein", "holds a Flux2KleinPipeline; this model reads Flux2Pipeline"),
        ("klein", "flux2", "holds a Flux2Pipeline; this model reads Flux2KleinPipeline"),
    ],
)
def test_a_checkpoint_of_another_pipeline_is_one_line(flux: Flux, variant: str, other: str, wanted: str) -> None:
    model = make_config(variant, flux.folder(other)).build("model")
    with pytest.raises(UserError, match=wanted) as refused:
        model.load(Runtime(torch.device("cpu"), torch.float32))
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_needs_torchvision_says_how_to_get_it(
    flux: Flux, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = json.loads((flux.folder("flux2") / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"tokenizer": ["transformers", "PixtralProcessor"]}))
    monkeypatch.setattr("flowfactory_flux.flux2.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs torchvision; pip install 'flowfactory-flux\[flux2\]'"):
        validate(settings("flux2", tmp_path))
    assert validate(settings("flux2", flux.folder("flux2")))


@pytest.mark.parametrize(("variant", "guidance"), [("dev", 3.5), ("kontext", 2.5), ("flux2", 4.0), ("klein-base", 4.0)])
def test_in_bf16_replaying_recorded_steps_gives_a_ratio_of_one(
    flux: Flux, tmp_path: Path, variant: str, guidance: float
) -> None:
    config = make_config(variant, flux.folder(variant), train=LORA)
    prompts = flux.mixed(variant)[2:4]
    made = bench(config, tmp_path, prompts, (32, 32), guidance=guidance, group_size=2, precision=torch.bfloat16)
    drawn = made.draw(4)
    assert made.conditions.entries[0]["embeds"].dtype == torch.bfloat16
    assert bool(drawn.media.isfinite().all())
    assert float(drawn.media.std()) > 0
    assert len(drawn.steps) == len(made.plan.recorded) > 0
    for step in drawn.steps:
        replayed = made.policy.evaluate(step).log_prob
        assert replayed is not None
        assert step.log_prob is not None
        assert torch.equal(replayed, step.log_prob)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_names_what_the_package_ships(name: str) -> None:
    path = Path(discover().components["example"][name].spec)
    raw = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    assert raw["model"]["name"] == name
    options = {key: value for key, value in raw["model"].items() if key != "name"}
    config = config_class(discover().find("model", name)).model_validate(options)
    files = {key: (path.parent / file).resolve() for key, file in raw["prompts"].items()}
    for file in files.values():
        assert file.parent.name == "data"
        check_media(read_prompts(file), config.takes, name)
    assert 8 <= len(read_prompts(files["train"])) <= 24
    assert not {prompt.text for prompt in read_prompts(files["train"])} & {
        prompt.text for prompt in read_prompts(files["heldout"])
    }
