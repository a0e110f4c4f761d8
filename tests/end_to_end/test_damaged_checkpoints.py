"""Of every model family: a part that is not whole is refused in one line that names it, and nothing is drawn with it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged import POINTER, Harm, copy_of, cut, prefixed, replaced, reshaped, reweighted, sharded, weights_of
from family_cases import CASES, Case, prompts
from safetensors.torch import load_file

from flowfactory import Prompt, Runtime, UserError
from flowfactory.canvas import Canvas
from flowfactory.config.component_slots import config_class
from flowfactory.data.prompts import read_prompts
from flowfactory.discovery.discover import discover
from flowfactory_tiny import FOLDER

WHOLE = "get the folder again, whole, or a config.json that goes with its weights"
FAMILIES = {key: case for key, case in CASES.items() if key != "flux1-schnell"}
FAMILIES["tiny"] = Case("tiny", lambda folder: Path(shutil.copytree(FOLDER / "pipeline", folder, dirs_exist_ok=True)))
FAMILIES["flux2"] = FAMILIES["flux2"]._replace(options={"max_sequence_length": 64})  # its system message takes more than 16
TEXT = {"flux1": ("text_encoder", "text_encoder_2"), "flux1-kontext": ("text_encoder", "text_encoder_2")}
TEXT |= {"tiny": ("text_encoder", "text_encoder_2"), "wan-i2v": ("text_encoder", "image_encoder")}
MODULES = [(key, part) for key in FAMILIES for part in ("transformer", "vae", *TEXT.get(key, ("text_encoder",)))]
OPENED = [key for key in FAMILIES if key not in ("flux1-kontext", "qwen-image", "wan-t2v", "wan-v2v")]
"""Others have parts of the same classes."""
TOKENIZERS = [
    (key, "processor" if key.startswith("qwen-image-2.1") else part.replace("text_encoder", "tokenizer"))
    for key, part in MODULES
    if part.startswith("text_encoder")
]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's checkpoint that is not damaged."""
    built: dict[str, Path] = {}

    def build(key: str) -> Path:
        if key not in built:
            built[key] = FAMILIES[key].build(tmp_path_factory.mktemp(key))
        return built[key]

    return build


@pytest.fixture
def copy(whole: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """The same, to be damaged."""
    return lambda key: copy_of(whole(key), tmp_path / "checkpoint")


def configured_model(key: str, folder: Path, **options: Any) -> Any:
    case = FAMILIES[key]
    kind = config_class(discover().find("model", case.name))
    return kind.model_validate({"path": str(folder), "train": "full", **case.options, **options})


def encoded(key: str, folder: Path, scratch: Path, **options: Any) -> list[Mapping[str, torch.Tensor]]:
    """Prompts by a family's model, which is opened whole for it."""
    case, config = FAMILIES[key], configured_model(key, folder, **options)
    config.check_checkpoint()
    model = config.build("model")
    model.load(Runtime(torch.device("cpu"), torch.float32))
    (scratch / "media").mkdir(exist_ok=True)
    wanted: list[Prompt] = read_prompts(prompts(case, scratch / "media"))
    return list(model.encode(wanted, Canvas(*case.size)))


def refusal(key: str, folder: Path, scratch: Path, **options: Any) -> str:
    with pytest.raises((UserError, ValueError)) as refused:  # a config's ValueError is a UserError to who reads one
        encoded(key, folder, scratch, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def refusal_before_weights(key: str, folder: Path, **options: Any) -> str:
    """What a dry run says."""
    with pytest.raises(ValueError, match=r"^model\.path") as refused:
        configured_model(key, folder, **options).check_checkpoint()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def index_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
    return found


def reindexed(folder: Path, **parts: Any) -> None:
    kept = {name: part for name, part in (index_of(folder) | parts).items() if part != "absent"}
    replaced(folder / "model_index.json", json.dumps(kept))


@pytest.mark.parametrize("key", FAMILIES)
def test_what_is_whole_is_opened(key: str, whole: Callable[[str], Path], tmp_path: Path) -> None:
    first, second = encoded(key, whole(key), tmp_path)
    different = first["embeds"].shape != second["embeds"].shape or not torch.equal(first["embeds"], second["embeds"])
    assert different, "or nothing below would show anything"


@pytest.mark.parametrize(("key", "part"), [each for each in MODULES if each[0] in OPENED])
def test_names_with_a_prefix_are_refused(key: str, part: str, copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy(key)
    prefixed("model.diffusion_model.")(folder / part)
    kind = index_of(folder)[part][1]
    told = rf"lacks \d+ weights that {kind} needs, the first \S+, and holds \d+ weights that it does not know, the first \S+"
    assert re.fullmatch(rf"model\.path: {part} of {folder} {told}; {WHOLE}", refusal(key, folder, tmp_path))


@pytest.mark.parametrize(("key", "part"), [each for each in MODULES if each[0] in OPENED])
def test_one_weight_that_is_lost_is_named(key: str, part: str, copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy(key)
    # one in the middle of a stack, which every class calls by the end of the file's name
    names = sorted(load_file(weights_of(folder / part)))
    lost = next(name for name in names if re.search(r"\.0\..*weight$", name) and "vis" not in name)
    reweighted(lambda weights: {name: tensor for name, tensor in weights.items() if name != lost})(folder / part)
    told = refusal(key, folder, tmp_path)
    found = re.fullmatch(rf"model\.path: {part} of {folder} lacks a weight that \w+ needs, the first (\S+); {WHOLE}", told)
    assert found, told
    assert found[1].split(".")[-3:] == lost.split(".")[-3:]


@pytest.mark.parametrize("key", OPENED)
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (reweighted(reshaped), r"holds a weight of another shape than its config\.json says: \S+ is \[3, 5\], not \[.*\]"),
        (
            reweighted(lambda weights: weights | {"more": torch.zeros(2)}),
            r"holds a weight that its config\.json has no place for, the first more",
        ),
        (lambda folder: sharded(folder, "weight"), r"lacks (a weight|\d+ weights) that \w+ needs, the first \S+"),
    ],
    ids=["shape", "more", "index"],
)
def test_weights_that_the_config_does_not_describe_are_refused(
    key: str, harm: Harm, told: str, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    for part in ("transformer", TEXT.get(key, ("text_encoder",))[0]):
        folder = copy(key)
        harm(folder / part)
        assert re.fullmatch(rf"model\.path: {part} of {folder} {told}; {WHOLE}", refusal(key, folder, tmp_path))
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("key", "setting"),
    [
        *((key, "num_layers") for key in OPENED if key != "z-image"),
        ("z-image", "n_layers"),
    ],
)
@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_layers_than_the_file_has_is_refused(
    key: str, setting: str, change: int, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy(key)
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text())
    replaced(file, json.dumps(config | {setting: config[setting] + change}))
    told = (
        r"lacks \d+ weights that \w+ needs, the"
        if change > 0
        else r"holds \d+ weights that its config\.json has no place for, the"
    )
    if key == "tiny":  # whose last layer has other shapes than the ones before
        told = r"holds 2 weights of other shapes than its config\.json says: transformer_blocks\.[12]\.norm1_context"
    assert re.match(rf"model\.path: transformer of {folder} {told}", refusal(key, folder, tmp_path))


def files_damaged(folder: Path) -> Iterator[tuple[Callable[[], Any], str]]:
    """How a part is damaged, one after the other, and what is said of it."""
    (weights,) = folder.glob("*.safetensors")
    whole = weights.read_bytes()
    pointer = "is a Git LFS pointer, which stands for the file; run git lfs pull there, or download the file"
    yield lambda: replaced(weights, POINTER), f"model.path: {weights} {pointer}"
    yield lambda: replaced(weights, ""), f"model.path: {weights} is empty; get it again, whole"
    replaced(weights, whole)
    damaged = "is cut off or damaged (Error while deserializing header: incomplete metadata, file not fully covered)"
    yield lambda: cut(folder), f"model.path: {weights} {damaged}; get it again, whole"
    replaced(weights, whole)
    config = (folder / "config.json").read_text()
    yield lambda: replaced(folder / "config.json", POINTER), f"model.path: {folder}/config.json {pointer}"
    unfinished = "is no JSON (Expecting value: line 1 column 6 (char 5))"
    yield (
        lambda: replaced(folder / "config.json", '{"a":'),
        f"model.path: {folder}/config.json {unfinished}; get it again, whole",
    )
    replaced(folder / "config.json", config)
    weights.unlink()
    half = weights.with_name(f"{weights.stem}.fp16.safetensors")
    replaced(half, whole)
    alone = "has weights of the variant fp16 alone; set model.variant: fp16"
    yield lambda: None, f"model.path: {folder.name} of {folder.parent} {alone}"
    half.unlink()
    replaced(weights, whole)
    yield (
        lambda: sharded(folder, "file"),
        f"model.path: there is no file {folder}/{weights.stem}-00002-of-00002.safetensors; get it again, whole",
    )


@pytest.mark.parametrize(("key", "part"), MODULES)
def test_a_damaged_file_is_named_before_weights_are_read(key: str, part: str, copy: Callable[[str], Path]) -> None:
    folder = copy(key)
    for harm, told in files_damaged(folder / part):
        harm()
        assert refusal_before_weights(key, folder) == told


@pytest.mark.parametrize(("key", "part"), MODULES)
def test_a_part_that_the_index_does_not_name_is_refused(key: str, part: str, copy: Callable[[str], Path]) -> None:
    folder = copy(key)
    index = index_of(folder)
    lacking = f"model.path: {folder} has no {part}"
    if part == "image_encoder":  # Wan 2.2 has none
        expected = [f"{lacking}, which its transformer needs; get it again, whole"] * 2
    else:
        expected = [f"{lacking}: model_index.json names none, and this model needs one; get it again, whole"] * 2
    for value, told in zip(([None, None], "absent"), expected, strict=True):
        reindexed(folder, **{part: value})
        assert refusal_before_weights(key, folder) == told
    if part != "image_encoder":
        reindexed(folder, **{part: ["elsewhere", "Other"]})
        foreign = f"{part} of {folder} is of the class Other of elsewhere; those of diffusers and transformers are read"
        assert refusal_before_weights(key, folder) == f"model.path: {foreign}"
    reindexed(folder, **{part: [index[part][0], "Unheard"]})
    library = __import__(index[part][0])
    told = f"is of the class Unheard, which {index[part][0]} {library.__version__} lacks; install one that has it"
    assert refusal(key, folder, folder.parent) == f"model.path: {part} of {folder} {told}"


@pytest.mark.parametrize(
    ("key", "part", "kind"),
    [
        ("flux1", "text_encoder", "CLIPTextModelWithProjection"),
        ("flux1", "text_encoder_2", "AutoModel"),
        ("tiny", "text_encoder", "CLIPTextModel"),
        ("wan-t2v", "text_encoder", "T5EncoderModel"),
        ("z-image", "text_encoder", "AutoModel"),
        ("z-image", "text_encoder", "AutoModelForCausalLM"),
        ("lumina2", "text_encoder", "GemmaModel"),
        ("lumina2", "text_encoder", "AutoModel"),
    ],
)
def test_an_encoder_of_another_class_is_refused_before_weights_are_read(
    key: str, part: str, kind: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(key)
    expected = {"z-image": "PreTrainedModel", "lumina2": "Gemma2PreTrainedModel"}.get(key, index_of(folder)[part][1])
    pipeline = index_of(folder)["_class_name"]
    reindexed(folder, **{part: ["transformers", kind]})
    for weights in folder.glob("*/*.safetensors"):
        replaced(weights, "")
    told = f"{part} of {folder} is of the class {kind}, and a {pipeline} has a {expected}; get model_index.json again"
    model = configured_model(key, folder).build("model")
    with pytest.raises(UserError, match=rf"^{re.escape(f'model.path: {told}')}$"):
        model.load(Runtime(torch.device("cpu"), torch.float32))


def rescheduled(folder: Path, kind: str, **settings: Any) -> None:
    """Another scheduler, saved with ``settings`` and what else it has."""
    import diffusers

    reindexed(folder, scheduler=["diffusers", kind])
    getattr(diffusers, kind)(**settings).save_pretrained(folder / "scheduler")


@pytest.mark.parametrize("key", FAMILIES)
def test_a_scheduler_of_something_else_than_flows_is_refused_before_weights_are_read(
    key: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(key)
    shutil.rmtree(folder / "scheduler")
    others = ("DDIM", "EulerDiscrete", "DPMSolverMultistep", "LCM", "UniPCMultistep", "FlowMatchHeunDiscrete")
    for kind in (f"{name}Scheduler" for name in others):
        rescheduled(folder, kind)
        told = rf"scheduler of {folder} is a {kind}, whose schedule is none of a flow in steps of one forward; get the "
        assert re.match(rf"model\.path: {told}", refusal_before_weights(key, folder))


@pytest.mark.parametrize("key", FAMILIES)
def test_a_schedule_without_its_shift_is_refused_before_weights_are_read(key: str, copy: Callable[[str], Path]) -> None:
    folder = copy(key)
    file = folder / "scheduler" / "scheduler_config.json"
    reindexed(folder, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    for settings in ({}, {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear"}):
        replaced(file, json.dumps(settings))
        told = f"{file} has no shift, which a FlowMatchEulerDiscreteScheduler needs; get it again, whole"
        assert refusal_before_weights(key, folder) == f"model.path: {told}"
    file.unlink()
    assert refusal_before_weights(key, folder) == f"model.path: there is no file {file}; get it again, whole"


@pytest.mark.parametrize(
    ("key", "kind", "settings"),
    [
        *((key, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}) for key in FAMILIES),
        *((key, "FlowMatchLCMScheduler", {"shift": 3.0}) for key in ("flux1", "qwen-image", "z-image", "tiny")),
        ("wan-t2v", "UniPCMultistepScheduler", {"flow_shift": 3.0, "use_flow_sigmas": True}),
    ],
)
def test_a_scheduler_of_flows_is_read(
    key: str, kind: str, settings: Mapping[str, Any], copy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy(key)
    shutil.rmtree(folder / "scheduler")
    rescheduled(folder, kind, **settings)
    config = configured_model(key, folder)
    config.check_checkpoint()
    model = config.build("model")
    model.load(Runtime(torch.device("cpu"), torch.float32))
    sigmas = config.family.sigmas(model._parts, 4, Canvas(*FAMILIES[key].size))
    assert len(sigmas) == 5
    assert sigmas[-1] == 0
    assert bool((sigmas[1:] < sigmas[:-1]).all())


def test_a_scheduler_that_does_not_do_what_the_model_asks_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy("flux1")
    shutil.rmtree(folder / "scheduler")
    rescheduled(folder, "DPMSolverMultistepScheduler", use_flow_sigmas=True)
    model = configured_model("flux1", folder).build("model")
    model.load(Runtime(torch.device("cpu"), torch.float32))
    told = r"its DPMSolverMultistepScheduler makes no schedule of this model: [^\n]*sigmas[^\n]*; get the checkpoint's own$"
    with pytest.raises(UserError, match=rf"^model\.path: {folder}: {told}"):
        model._family.sigmas(model._parts, 4, Canvas(32, 32))


def test_a_vae_without_its_shift_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy("flux1")
    file = folder / "vae" / "config.json"
    replaced(file, json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != "shift_factor"}))
    model = configured_model("flux1", folder).build("model")
    model.load(Runtime(torch.device("cpu"), torch.float32))
    told = f"model.path: the config.json of the vae of {folder} has no shift_factor; get it again, whole"
    with pytest.raises(UserError, match=f"^{re.escape(told)}$"):
        model.decode(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(("key", "part"), TOKENIZERS)
def test_a_tokenizer_without_its_vocabulary_is_refused_before_weights_are_read(
    key: str, part: str, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy(key)
    vocabulary = folder / part / "tokenizer.json"
    content, settings = vocabulary.read_text(), (folder / part / "tokenizer_config.json").read_text()
    replaced(vocabulary, POINTER)
    assert refusal_before_weights(key, folder).startswith(f"model.path: {vocabulary} is a Git LFS pointer")
    vocabulary.unlink()
    told = f"model.path: {part} of {folder} has no tokenizer.json in {folder / part}; get it again, whole"
    assert refusal_before_weights(key, folder) == told
    shutil.rmtree(folder / part)
    assert refusal_before_weights(key, folder) == f"model.path: there is no folder {folder / part}; get it again, whole"
    (folder / part).mkdir()
    replaced(folder / part / "tokenizer_config.json", settings)
    found = json.loads(content)
    first = "<pad>" if isinstance(found["model"]["vocab"], list) else "<|endoftext|>"
    found["model"]["vocab"] = [[first, 0.0], ["</s>", 0.0], ["<unk>", 0.0]] if first == "<pad>" else {first: 0}
    found["model"]["merges"] = []
    replaced(vocabulary, json.dumps(found))
    assert f"{part} of {folder}" in refusal(key, folder, tmp_path)


@pytest.mark.parametrize(("key", "part"), TOKENIZERS)
def test_a_tokenizer_without_its_settings_is_refused_before_weights_are_read(
    key: str, part: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(key)
    settings = folder / part / "tokenizer_config.json"
    settings.unlink()
    assert refusal_before_weights(key, folder) == f"model.path: there is no file {settings}; get it again, whole"


@pytest.mark.parametrize("key", ["flux1", "tiny"])
def test_no_prompt_is_longer_than_its_encoder_has_places_for(
    key: str, whole: Callable[[str], Path], copy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy(key)
    file = folder / "tokenizer" / "tokenizer_config.json"
    replaced(file, json.dumps(json.loads(file.read_text()) | {"model_max_length": 10**30}))
    for ours, theirs in zip(encoded(key, folder, tmp_path), encoded(key, whole(key), tmp_path), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("key", [key for key, part in TOKENIZERS if part == "tokenizer"])
def test_a_vocabulary_of_another_encoder_is_refused(key: str, copy: Callable[[str], Path], tmp_path: Path) -> None:
    from flowfactory.testing.tiny_checkpoints import qwen_tokenizer

    folder = copy(key)
    shutil.rmtree(folder / "tokenizer")
    tokenizer = qwen_tokenizer(["".join(word) for word in product("abcdefg", repeat=3)])
    tokenizer.save_pretrained(folder / "tokenizer")
    reindexed(folder, tokenizer=["transformers", "Qwen2Tokenizer"])
    told = (
        rf"tokenizer of {folder} has ids up to {len(tokenizer) - 1}, and its encoder has \d+ embeddings; get the tokenizer of"
    )
    assert re.match(rf"model\.path: {told}", refusal(key, folder, tmp_path))


@pytest.mark.parametrize("key", ["flux1", "wan-i2v", "tiny"])
def test_files_of_a_variant_are_read_where_a_part_has_them(key: str, copy: Callable[[str], Path], tmp_path: Path) -> None:
    expected = encoded(key, copy(key), tmp_path)
    folder = tmp_path / "checkpoint"
    for part in ("transformer", "text_encoder"):
        weights = weights_of(folder / part)
        os.rename(weights, weights.with_name(f"{weights.stem}.fp16.safetensors"))
    found = encoded(key, folder, tmp_path, variant="fp16")
    assert all(torch.equal(ours[name], theirs[name]) for ours, theirs in zip(found, expected, strict=True) for name in theirs)
    assert refusal_before_weights(key, folder, variant="bf16").endswith("of the variant fp16 alone; set model.variant: fp16")


def test_a_variant_that_no_part_has_is_refused(whole: Callable[[str], Path]) -> None:
    told = f"model.variant: no part of {whole('tiny')} has weights of the variant fp16; leave it out"
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        configured_model("tiny", whole("tiny"), variant="fp16").check_checkpoint()


@pytest.mark.parametrize("key", ["flux2", "flux2-klein", "z-image"])
def test_a_chat_template_that_is_lost_is_named(key: str, copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy(key)
    (folder / "tokenizer" / "chat_template.jinja").unlink()
    told = f"model.path: tokenizer of {folder} has no chat template, which stands in chat_template.jinja; get it again, whole"
    assert refusal(key, folder, tmp_path) == told


@pytest.mark.parametrize("command", ["run", "estimate"])
def test_the_commands_end_in_one_line(
    command: str, copy: Callable[[str], Path], tmp_path: Path, flowfactory: Callable[..., Any]
) -> None:
    folder = copy("tiny")
    weights = weights_of(folder / "text_encoder_2")
    replaced(weights, POINTER)
    options = [f"model.path={folder}", f"output.dir={tmp_path / 'run'}"]
    done = flowfactory(command, "quickstart", *(part for option in options for part in ("--set", option)), code=2)
    told = (
        f"model.path: {weights} is a Git LFS pointer, which stands for the file; run git lfs pull there, or download the file"
    )
    assert done.stderr.splitlines() == [f"error: --set {told}"]
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()
