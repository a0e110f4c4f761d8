"""Rewards made of folders in which something is missing, damaged or of another model: one line each, before any score."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_detectors
import torch
import yaml
from damaged import POINTER, copy_of, cut, prefixed, replaced, reshaped, reweighted, sharded, weights_of
from reward_cases import refusal
from reward_run import config_with_reward
from tiny_clip import clip_folder
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model, ViTImageProcessorPil

from flowfactory import ComponentConfig, UserError
from flowfactory.cli.main import main
from flowfactory.testing import settings
from flowfactory_rewards.aesthetic import AestheticConfig
from flowfactory_rewards.clip import ClipConfig
from flowfactory_rewards.geneval import GenevalConfig
from flowfactory_rewards.hpsv2 import HpsV2Config
from flowfactory_rewards.hpsv3 import HpsV3Config
from flowfactory_rewards.image_quality import ImageQualityConfig
from flowfactory_rewards.imagereward import ImageRewardConfig
from flowfactory_rewards.pickscore import PickScoreConfig
from flowfactory_rewards.video_consistency import VideoConsistencyConfig
from flowfactory_rewards.weights import read_tensors

CPU = torch.device("cpu")


def dinov2(folder: Path) -> Path:
    trunk = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**trunk, image_size=32, patch_size=8)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    """With LAION's predictor beside it."""
    clip_folder(folder)
    widths = (24, 16, 12, 8, 6, 1)
    layers = {}
    for number, into, out in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        layers |= {f"layers.{number}.weight": torch.randn(out, into), f"layers.{number}.bias": torch.randn(out)}
    torch.save(layers, folder / "aesthetic-model.pth")
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "clip": clip,
    "dinov2": dinov2,
    "detr": tiny_detectors.detr,
    "rt-detr": tiny_detectors.rt_detr,
    "owlv2": lambda folder: tiny_detectors.owl(folder, second=True),
    "grounding-dino": tiny_detectors.grounding_dino,
}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("whole")
    return {name: make(place / name) for name, make in MAKERS.items()}


REWARDS: dict[str, tuple[str, Callable[[str, str], ComponentConfig]]] = {
    # what is in the folder that is damaged, and the reward that reads it, beside a CLIP that is whole
    "clip": ("clip", lambda folder, _: ClipConfig(path=folder)),
    "pickscore": ("clip", lambda folder, _: PickScoreConfig(path=folder)),
    "hpsv2": ("clip", lambda folder, _: HpsV2Config(path=folder, file=None)),
    "aesthetic": ("clip", lambda folder, whole: AestheticConfig(path=folder, predictor=whole)),
    "image-quality": ("clip", lambda folder, _: ImageQualityConfig(path=folder)),
    "video-consistency": ("dinov2", lambda folder, _: VideoConsistencyConfig(path=folder)),
    "detr": ("detr", lambda folder, whole: GenevalConfig(path=folder, clip=whole)),
    "rt-detr": ("rt-detr", lambda folder, whole: GenevalConfig(path=folder, clip=whole)),
    "owlv2": ("owlv2", lambda folder, whole: GenevalConfig(path=folder, clip=whole)),
    "grounding-dino": ("grounding-dino", lambda folder, whole: GenevalConfig(path=folder, clip=whole)),
}
TEXTS = ("clip", "pickscore", "hpsv2", "image-quality", "owlv2", "grounding-dino")
PICTURES = ("clip", "video-consistency", "rt-detr", "grounding-dino")


def harmed(name: str, whole: dict[str, Path], place: Path, harm: Callable[[Path], object]) -> str:
    kind, make = REWARDS[name]
    folder = copy_of(whole[kind], place / "harmed")
    harm(folder)
    return refusal(make(str(folder), str(whole["clip"])))


def spare(folder: Path) -> None:
    reweighted(lambda weights: {**weights, "more.weight": torch.zeros(2)})(folder)


def half(folder: Path) -> None:
    """Every second weight."""
    reweighted(lambda weights: {name: weights[name] for name in sorted(weights)[::2]})(folder)


def in_half_precision_alone(folder: Path) -> None:
    weights_of(folder).rename(folder / "model.fp16.safetensors")


def without_a_text_encoder(folder: Path) -> None:
    """As a file that was not written to its end, where its room was taken before."""

    def empty(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: torch.zeros_like(weight) if "text_model.encoder" in name else weight for name, weight in weights.items()}

    reweighted(empty)(folder)


def needed_alone(folder: Path) -> None:
    """Without what may be lacking."""
    reweighted(lambda weights: {name: weight for name, weight in weights.items() if "mask_token" not in name})(folder)


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "prefixed": (prefixed("te."), r"harmed lacks \d+ weights .*the first [\w.]+, and holds \d+ .*the first te\.[\w.]+; get"),
    "half": (half, r"harmed lacks \d+ weights .*, the first [\w.]+; get the folder again, whole"),
    "spare": (spare, r"harmed holds a weight .*, the first more\.weight; get"),
    "reshaped": (reweighted(reshaped), r"harmed holds a weight of another shape .*: [\w.]+ is \[3, 5\], not \["),
    "zeros": (without_a_text_encoder, r"harmed holds nothing but zeros in 12 of its \d+ matrices, the first text_model\.enc"),
    "cut": (cut, r"model\.safetensors is cut off or damaged \(.*\); get it again, whole"),
    "pointer": (lambda folder: replaced(weights_of(folder), POINTER), r"model\.safetensors is a Git LFS pointer"),
    "no weights": (lambda folder: weights_of(folder).unlink(), r"harmed has no weights"),
    "fp16 alone": (in_half_precision_alone, r"harmed has no weights .*, and has those of the variant fp16; get it again"),
    "a shard gone": (lambda folder: sharded(folder, "file"), r"there is no file .*model-00002-of-00002\.safetensors"),
    "a shard's weight gone": (
        lambda folder: (needed_alone(folder), sharded(folder, "weight")),
        r"harmed lacks (a weight|\d+ weights) .*, the first [\w.]+;",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"there is no file .*harmed/config\.json; get it again"),
    "config pointer": (lambda folder: replaced(folder / "config.json", POINTER), r"config\.json is a Git LFS pointer"),
}


EVERY_LOADER = ("clip", "video-consistency", "owlv2")
"""Rewards that read by all the ways there are; the others are tried on a few harms."""
PAIRS = [
    (name, harm)
    for name in REWARDS
    for harm in HARMS
    if (name == "clip" if harm == "zeros" else name in EVERY_LOADER or harm in ("prefixed", "spare", "pointer"))
]


@pytest.mark.parametrize(("name", "harm"), PAIRS)
def test_weights_that_are_not_all_there_are_one_line(name: str, harm: str, whole: dict[str, Path], tmp_path: Path) -> None:
    assert re.search(HARMS[harm][1], harmed(name, whole, tmp_path, HARMS[harm][0]))


def other_vocabulary(folder: Path) -> None:
    """Of a tenth of the words; the encoder has embeddings for more."""
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text())
    words = found["model"]["vocab"]
    specials = {special["content"] for special in found["added_tokens"]}
    kept = [word for word in words if word in specials or len(word) == 1]
    found["model"] |= {"vocab": {word: i for i, word in enumerate(kept)}, "merges": []}
    found["added_tokens"] = [special | {"id": kept.index(special["content"])} for special in found["added_tokens"]]
    replaced(file, json.dumps(found))


TOKENIZER_HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda folder: (folder / "tokenizer.json").unlink(), r"the tokenizer in .*harmed has no [\w.]+"),
    "pointer": (lambda folder: replaced(folder / "tokenizer.json", POINTER), r"tokenizer\.json is a Git LFS pointer"),
    "cut": (lambda folder: replaced(folder / "tokenizer.json", '{"version": "1.'), r"tokenizer\.json is no JSON"),
}


@pytest.mark.parametrize(
    ("name", "harm"),
    [(name, harm) for name in TEXTS for harm in TOKENIZER_HARMS if harm != "gone" or name not in ("pickscore", "hpsv2")],
)  # these two take that of another model then
def test_a_tokenizer_that_is_not_there_is_one_line(name: str, harm: str, whole: dict[str, Path], tmp_path: Path) -> None:
    assert re.search(TOKENIZER_HARMS[harm][1], harmed(name, whole, tmp_path, TOKENIZER_HARMS[harm][0]))


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "grounding-dino"])
def test_a_tokenizer_of_another_encoder_is_one_line(name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    told = harmed(name, whole, tmp_path, other_vocabulary)
    assert re.search(
        r"the tokenizer in .*harmed has ids up to \d+, and its encoder has \d+ embeddings; get the tokenizer", told
    )


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("content", [None, POINTER])
def test_a_picture_processor_that_is_not_there_is_one_line(
    name: str, content: str | None, whole: dict[str, Path], tmp_path: Path
) -> None:
    def harm(folder: Path) -> None:
        for file in (*folder.glob("preprocessor_config.json"), *folder.glob("processor_config.json")):
            file.unlink() if content is None else replaced(file, content)

    told = harmed(name, whole, tmp_path, harm)
    assert re.search(r"harmed" if content is None else r"harmed/\w+\.json is a Git LFS pointer", told)


def test_looks_are_rated_without_a_tokenizer(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(whole["clip"], tmp_path / "no-texts")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    AestheticConfig(path=str(folder), predictor=str(folder)).build("looks").prepare_reward(CPU)


def silenced(folder: Path) -> None:
    """Nothing of a text comes through."""

    def silence(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return weights | {"text_projection.weight": torch.zeros_like(weights["text_projection.weight"])}

    reweighted(silence)(folder)


def filled(name: str, value: float) -> Callable[[Path], None]:
    return reweighted(lambda weights: {**weights, name: torch.full_like(weights[name], value)})


@pytest.mark.parametrize("name", ["clip", "pickscore", "hpsv2", "image-quality"])
def test_an_answer_that_is_no_number_is_refused(name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    told = harmed(name, whole, tmp_path, filled("text_projection.weight", float("nan")))
    assert re.search(r"harmed makes of 'a red cat' what is not finite; get its weights again, whole$", told)


@pytest.mark.parametrize("name", ["clip", "pickscore", "aesthetic", "image-quality", "colours", "video-consistency"])
@pytest.mark.parametrize("settings", ["{}", '{"crop_size": 32, "size": {"shortest_edge": 32}}'])
def test_a_picture_processor_of_another_model_is_refused(
    name: str, settings: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy_of(whole["clip"], tmp_path / "harmed")
    replaced(folder / "preprocessor_config.json", settings)
    makers = {"colours": lambda: GenevalConfig(path=str(whole["detr"]), clip=str(folder))}
    makers["video-consistency"] = lambda: VideoConsistencyConfig(path=str(folder))
    config = makers[name]() if name in makers else REWARDS[name][1](str(folder), str(whole["clip"]))
    assert re.search(r"harmed cannot be read: ValueError: ", refusal(config))


def test_hpsv2_reads_a_tokenizer_beside_its_weights(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(whole["clip"], tmp_path / "weights")
    (folder / "preprocessor_config.json").unlink()
    reward: Any = HpsV2Config(path=str(folder), file=None).build("mine")
    reward.prepare_reward(CPU)


@pytest.mark.parametrize("name", ["clip", "pickscore", "hpsv2", "image-quality"])
def test_one_answer_for_different_prompts_is_refused(name: str, whole: dict[str, Path], tmp_path: Path) -> None:
    told = harmed(name, whole, tmp_path, silenced)
    assert re.search(r"harmed makes the same of 'a red cat' and 'a big dog': it does not read prompts; get its weights", told)


def test_colours_that_are_not_told_apart_are_refused(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(whole["clip"], tmp_path / "harmed")
    silenced(folder)
    assert "harmed makes the same of 'a red cat'" in refusal(GenevalConfig(path=str(whole["detr"]), clip=str(folder)))


def test_what_older_releases_have_besides_is_let_pass(whole: dict[str, Path], tmp_path: Path) -> None:
    def add(*names: str) -> Callable[[Path], None]:
        return reweighted(lambda weights: {**weights, **{name: torch.zeros(1) for name in names}})

    for kind, names in {
        "clip": ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"),
        "owlv2": ("owlv2.text_model.embeddings.position_ids",),
        "detr": ("model.backbone.model.embedder.num_batches_tracked",),
        "dinov2": ("classifier.weight", "classifier.bias", "pooler.dense.weight"),
    }.items():
        folder = copy_of(whole[kind], tmp_path / kind)
        add(*names)(folder)
        for name, (read, make) in REWARDS.items():
            if read == kind:
                reward: Any = make(str(folder), str(whole["clip"])).build(name)
                reward.prepare_reward(CPU)


@pytest.mark.parametrize("harm", ["cut", "pointer", "a shard gone", "config pointer"])
def test_what_headers_tell_is_told_when_the_config_is_read(harm: str, whole: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(whole["clip"], tmp_path / "harmed")
    HARMS[harm][0](folder)
    with pytest.raises(UserError, match=HARMS[harm][1]):
        config_with_reward(tmp_path, {"name": "clip", "path": "harmed"}, [{"prompt": "a cat"}])


def test_files_that_macos_leaves_are_not_read(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(whole["clip"], tmp_path / "weights")
    for file in [*folder.iterdir()]:
        replaced(folder / f"._{file.name}", b"\0\5\x16\7")
    assert config_with_reward(tmp_path, {"name": "clip", "path": "weights"}, [{"prompt": "a cat"}])
    config = ClipConfig(path=str(folder))
    config.build("mine").prepare_reward(CPU)
    assert config.weight_bytes() == {f"{folder}, float32": sum(ClipConfig(path=str(whole["clip"])).weight_bytes().values())}


@pytest.mark.parametrize("harm", ["half", "cut"])
def test_the_command_ends_with_one_line_and_2(
    harm: str, whole: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(whole["clip"], tmp_path / "harmed")
    HARMS[harm][0](folder)
    raw = settings(
        tmp_path, "grpo", rewards={"judge": {"name": "clip", "path": str(folder)}}, sampling={"dynamics": "flow-sde"}
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.setattr("sys.argv", ["flowfactory", "run", str(tmp_path / "config.yaml")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert re.search(HARMS[harm][1], said[0])
    assert not list(tmp_path.glob("run/*.safetensors"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"file\.pt is empty; get it again, whole"),
        (POINTER.encode(), r"file\.pt is a Git LFS pointer, .*git lfs pull"),
        (b"<html>404</html>", r"file\.pt is cut off or damaged; get it again, whole"),
        ("cut", r"file\.pt is cut off or damaged; get it again, whole"),
        ([torch.zeros(1)], r"file\.pt holds other things than weights by name; get it again, whole"),
        ({"inner": [1]}, r"file\.pt holds other things than weights by name"),
        ({"step": 3}, r"file\.pt holds other things than weights by name"),
    ],
)
def test_a_released_file_that_is_none_is_one_line(content: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save({"a": torch.zeros(1000)} if content == "cut" else content, file)
    if content == "cut":
        file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(UserError, match=rf"^[^\n]*{said}[^\n]*$"):
        read_tensors(str(tmp_path), "file.pt", "inner")
    with pytest.raises(UserError, match=r"^there is no file .*other\.pt; get it again, whole$"):
        read_tensors(str(tmp_path), "other.pt")


@pytest.mark.parametrize("path", ["clip/model.safetensors", "./clip/model.safetensors", "./gone", "clip/gone"])
@pytest.mark.parametrize("name", ["clip", "siglip", "hpsv3", "imagereward", "geneval", "video-consistency"])
def test_a_path_that_is_no_folder_is_one_line(name: str, path: str, whole: dict[str, Path], tmp_path: Path) -> None:
    copy_of(whole["clip"], tmp_path / "clip")
    said = (
        r"model\.safetensors is a file, and a folder is read" if "model" in path else rf"there is no folder {tmp_path}/.*gone"
    )
    with pytest.raises(UserError, match=rf"^[^\n]*rewards\.judge\.path: [^\n]*{said}[^\n]*$"):
        config_with_reward(tmp_path, {"name": name, "path": path})


def test_a_hub_id_without_a_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for reward in (ImageRewardConfig(tokenizer="nobody/has-this"), HpsV3Config(base="nobody/has-this")):
        assert refusal(reward).endswith("its vocabulary is not there; download them first: hf download nobody/has-this")
    for config in (
        ClipConfig(path="nobody/has-this"),
        HpsV2Config(path="nobody/has-this"),
        GenevalConfig(path="nobody/has-this"),
    ):
        assert "nobody/has-this" in refusal(config)


@pytest.mark.parametrize("kind", [VideoConsistencyConfig, GenevalConfig, PickScoreConfig])
def test_code_beside_weights_is_not_executed_whatever_the_terminal_says(
    kind: Callable[..., ComponentConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched, folder = tmp_path / "executed", tmp_path / "model"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(touched)!r}, 'w')\nfrom transformers import PretrainedConfig as Theirs\n")
    (folder / "config.json").write_text('{"model_type": "theirs", "auto_map": {"AutoConfig": "code.Theirs"}}')
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    told = "it needs code that it brings, which is not run; choose a model that the library itself has"
    assert refusal(kind(path=str(folder))).endswith(told)
    assert not touched.exists()
