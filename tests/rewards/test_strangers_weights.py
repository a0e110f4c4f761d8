"""Rewards of folders that somebody else made: what would run when it is unpickled or imported is refused in a line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import payload
import pytest
import tiny_detectors
import torch
from reward_cases import refusal
from tiny_clip import clip_folder
from transformers import Dinov2Config, Dinov2Model, ViTImageProcessorPil

from flowfactory import ComponentConfig, UserError
from flowfactory_rewards.aesthetic import AestheticConfig
from flowfactory_rewards.clip import ClipConfig
from flowfactory_rewards.geneval import GenevalConfig
from flowfactory_rewards.hpsv2 import HpsV2Config
from flowfactory_rewards.hpsv3 import HpsV3Config
from flowfactory_rewards.imagereward import ImageRewardConfig
from flowfactory_rewards.video_consistency import VideoConsistencyConfig
from flowfactory_rewards.weights import read_tensors

REFUSED = "holds more than tensors and is not read: it could run code"


def dinov2(folder: Path) -> Path:
    trunk = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**trunk, image_size=32, patch_size=8)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


HEADS: dict[str, Callable[[str, str], ComponentConfig]] = {
    "aesthetic": lambda folder, file: AestheticConfig(path=folder, predictor=folder, file=file),
    "hpsv2": lambda folder, file: HpsV2Config(path=folder, file=file),
    "hpsv3": lambda folder, file: HpsV3Config(path=folder, file=file, base=folder),
    "imagereward": lambda folder, file: ImageRewardConfig(path=folder, file=file, tokenizer=f"{folder}/../words"),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("kind", ["archive", "pickle", "program"])
def test_a_head_with_a_program_is_not_unpickled(name: str, kind: str, tmp_path: Path) -> None:
    clip_folder(tmp_path / "folder")
    tiny_detectors.grounding_dino(tmp_path / "words")
    mark, file = tmp_path / "ran", tmp_path / "folder/head.pt"
    contents = {"archive": payload.saved_by_torch(mark), "pickle": payload.pickled(mark), "program": payload.program()}
    file.write_bytes(contents[kind])
    told = refusal(HEADS[name](str(tmp_path / "folder"), "head.pt"))
    assert told.startswith(f"{file} {'is no file that torch saved' if kind == 'pickle' else REFUSED}")
    assert not mark.exists()


MODELS: dict[str, tuple[Callable[[Path], object], Callable[[str], ComponentConfig]]] = {
    "clip": (clip_folder, lambda folder: ClipConfig(path=folder)),
    "video-consistency": (dinov2, lambda folder: VideoConsistencyConfig(path=folder)),
    "detr": (tiny_detectors.detr, lambda folder: GenevalConfig(path=folder, clip=folder)),
    "grounding-dino": (tiny_detectors.grounding_dino, lambda folder: GenevalConfig(path=folder, clip=folder)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_a_program_in_its_weights_is_not_unpickled(name: str, tmp_path: Path) -> None:
    folder, mark = tmp_path / "folder", tmp_path / "ran"
    MODELS[name][0](folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(payload.saved_by_torch(mark))
    assert refusal(MODELS[name][1](str(folder))).startswith(f"{folder / 'pytorch_model.bin'} {REFUSED}")
    assert not mark.exists()


CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedModel
Path({mark!r}).touch()
class Config(PretrainedConfig):
    model_type = "strange"
class Model(PreTrainedModel):
    config_class = Config
Processor = ImageProcessor = Tokenizer = Model
"""


@pytest.mark.parametrize("name", MODELS)
def test_code_beside_a_model_is_not_imported_and_nobody_is_asked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where transformers has the model itself, that is taken; where it has not, the folder is refused."""
    mark = tmp_path / "ran"
    classes = {kind: f"strange.{kind[4:]}" for kind in ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoProcessor")}
    named = {"auto_map": {**classes, "AutoTokenizer": ["strange.Tokenizer", None]}}
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))

    def brings_code(folder: Path, changes: Mapping[str, Any]) -> str:
        MODELS[name][0](folder)
        (folder / "strange.py").write_text(CODE.format(mark=str(mark)))
        for file in folder.glob("*config.json"):
            file.write_text(json.dumps(json.loads(file.read_text()) | named | changes))
        return str(folder)

    reward: Any = MODELS[name][1](brings_code(tmp_path / "known", {})).build("mine")
    with suppress(UserError):  # of a CLIP that is none
        reward.prepare_reward(torch.device("cpu"))
    assert not mark.exists()
    folder = brings_code(tmp_path / "unknown", {"model_type": "strange"})
    told = refusal(MODELS[name][1](folder))
    needs = "it needs code that it brings, which is not run; choose a model that the library itself has"
    assert told == f"{folder} cannot be read: {needs}"
    assert not mark.exists()


def test_heads_that_hold_tensors_are_read(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "head.pt")
    assert re.fullmatch(r"\['w'\]", str([*read_tensors(str(tmp_path), "head.pt", "state_dict")]))
