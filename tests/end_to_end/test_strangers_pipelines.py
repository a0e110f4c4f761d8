"""Pipelines that somebody else made: no part of one is unpickled or imported, and the line names the file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import payload
import pytest
import tiny_z_image
import torch

from flowfactory import Prompt, Runtime, UserError
from flowfactory.canvas import Canvas
from flowfactory.models import Pretrained
from flowfactory_tiny import FOLDER
from flowfactory_z_image.z_image import ZImageConfig

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
DTYPES = {"default": torch.float32}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER / "pipeline", tmp_path / "pipeline"))


def opened(folder: Path) -> None:
    pretrained = Pretrained(str(folder), ("StableDiffusion3Pipeline",))
    pretrained.check(PARTS)
    pretrained.open(PARTS, DTYPES)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        opened(folder)
    assert str(refused.value).isprintable()
    return str(refused.value)


def weights_of(part: Path) -> Path:
    """Where a library looks for weights that torch saved, in place of those that there were."""
    for file in part.glob("*.safetensors"):
        file.unlink()
    return part / ("pytorch_model.bin" if part.name.startswith("text") else "diffusion_pytorch_model.bin")


def test_what_is_whole_is_opened(folder: Path) -> None:
    opened(folder)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_no_part_is_unpickled(part: str, folder: Path, tmp_path: Path) -> None:
    file, mark = weights_of(folder / part), tmp_path / "ran"
    for content in (payload.saved_by_torch(mark), payload.program()):
        file.write_bytes(content)
        told = f"model.path: {file} holds more than tensors and is not read: it could run code; get it as .safetensors"
        assert refusal(folder) == told
    assert not mark.exists()


def test_a_run_of_such_a_pipeline_is_one_line(
    flowfactory: Callable[..., subprocess.CompletedProcess[str]], folder: Path, tmp_path: Path
) -> None:
    file, mark = weights_of(folder / "transformer"), tmp_path / "ran"
    file.write_bytes(payload.saved_by_torch(mark))
    done = flowfactory("run", "quickstart", "--out", tmp_path / "run", "--set", f"model.path={folder}", code=2)
    (line,) = done.stderr.splitlines()
    assert f"model.path: {file} holds more than tensors and is not read" in line
    assert not mark.exists()


PIPELINE = """
from pathlib import Path
from diffusers import DiffusionPipeline
Path({mark!r}).touch()
class Strange(DiffusionPipeline):
    pass
"""


@pytest.mark.parametrize(
    ("library", "kind", "told"),
    [
        ("diffusers", "DiffusionPipeline", "is of the class DiffusionPipeline, which is no part of a pipeline"),
        ("diffusers", "AutoModel", "is of the class AutoModel, which is no part of a pipeline"),
        ("transformers", "AutoModel", "is of the class AutoModel, which is no part of a pipeline"),
        ("transformers", "AutoTokenizer", "is of the class AutoTokenizer, which is no part of a pipeline"),
        ("transformers", "pipeline", "is of the class pipeline, which transformers .* lacks"),
        ("strange", "Strange", "is of the class Strange of strange; those of diffusers and transformers are read"),
        ("os", "system", "is of the class system of os; those of diffusers and transformers are read"),
        ("subprocess", "Popen", "is of the class Popen of subprocess; those of diffusers and transformers are read"),
    ],
)
def test_an_index_names_no_code(library: str, kind: str, told: str, folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vae": [library, kind]}))
    for place in (folder, folder / "vae"):
        (place / "strange.py").write_text(PIPELINE.format(mark=str(mark)))
    strange = {"_class_name": ["strange", "Strange"], "_diffusers_version": "0.42.0"}
    (folder / "vae/model_index.json").write_text(json.dumps(strange))
    config = json.loads((folder / "vae/config.json").read_text())
    named = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModel"), "strange.Strange"), "model_type": "strange"}
    (folder / "vae/config.json").write_text(json.dumps(config | named))
    assert re.search(told, refusal(folder))
    assert not mark.exists()


def test_a_schedule_of_more_steps_than_memory_holds_is_refused(folder: Path) -> None:
    file = folder / "scheduler/scheduler_config.json"
    for steps, told in ((10**10, "10000000000"), (10**9, "1000000000"), (1e12, "1000000000000.0")):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"num_train_timesteps": steps}))
        refused = f"model.path: {file}: num_train_timesteps is {told}, more than the 100000 that is read; get it again, whole"
        assert refusal(folder) == refused


@pytest.mark.parametrize(
    ("part", "name", "settings"),
    [
        ("tokenizer", "tokenizer_config.json", {"model_max_length": "x"}),
        ("tokenizer", "tokenizer_config.json", {"tokenizer_object": "x"}),
        ("text_encoder", "config.json", {"dtype": "load"}),
        ("text_encoder", "config.json", {"hidden_act": "os.system"}),
        ("transformer", "config.json", {"num_layers": "x"}),
        ("scheduler", "scheduler_config.json", {"shift": "x"}),
    ],
)
def test_a_value_that_a_library_does_not_take_is_one_line_that_says_what_to_do(
    part: str, name: str, settings: dict[str, str], folder: Path
) -> None:
    file = folder / part / name
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    told = r"(\w+Error: .*); a file of it holds what its library does not take; get it again, whole"
    assert re.fullmatch(rf"model\.path: {part} of {re.escape(str(folder))} cannot be read: {told}", refusal(folder))


def test_an_index_names_no_folder_elsewhere(folder: Path, tmp_path: Path) -> None:
    """What is not beside it is not looked at, wherever it is."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/config.json").write_text("no JSON")
    index = json.loads((folder / "model_index.json").read_text())
    others = {name: ["diffusers", "AutoencoderTiny"] for name in ("../elsewhere", str(tmp_path / "elsewhere"))}
    (folder / "model_index.json").write_text(json.dumps(index | others))
    opened(folder)


def test_the_settings_of_a_part_name_no_code(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for part in PARTS:
        (folder / part / "strange.py").write_text(PIPELINE.format(mark=str(mark)))
        for file in (folder / part).glob("*config.json"):
            kinds = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor")
            named = {"auto_map": dict.fromkeys(kinds, "strange.Strange") | {"AutoTokenizer": ["strange.Strange", None]}}
            file.write_text(json.dumps(json.loads(file.read_text()) | named))
    opened(folder)
    assert not mark.exists()


ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
TEMPLATES = {
    "reads attributes": ESCAPE,
    "calls": "{{ cycler.__init__.__globals__.os.system('touch ' ~ %r) }}",
    "fails": "{{ 1 / 0 }}",
    "is none": "{% for",
    "refuses": "{{ raise_exception('no') }}",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_reaches_nothing_but_messages(template: str, tmp_path: Path) -> None:
    folder, mark = tiny_z_image.z_image(tmp_path / "pipeline"), tmp_path / "ran"
    text = TEMPLATES[template]
    (folder / "tokenizer/chat_template.jinja").write_text(text % str(mark) if "%r" in text else text)
    model = ZImageConfig(path=str(folder), max_sequence_length=16).build("model")
    model.load(Runtime(torch.device("cpu"), torch.float32))
    with pytest.raises(UserError) as refused:
        list(model.encode([Prompt("a cat", 0)], Canvas(32, 32)))
    assert str(refused.value).isprintable()
    assert str(refused.value).startswith(f"model.path: tokenizer of {folder} has a chat template that fails: ")
    assert not mark.exists()
