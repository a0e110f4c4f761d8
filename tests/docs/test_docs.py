"""What the pages say is true: every whole program and config in them is run, and every link leads somewhere."""

import ast
import importlib
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import docs_modules
import pytest
from pages import BLOCKS, DOCS, PAGES, ROOT, WHOLE, WRITTEN, Block, blocks_of, write_files
from pydantic import BaseModel
from typer.testing import CliRunner

from flowfactory.cli.main import app
from flowfactory.config.loading import validate
from flowfactory.config.yaml import parse_yaml
from flowfactory.discovery.discover import discover
from flowfactory.errors import RunError, UserError
from flowfactory_tiny import pretrain, prompt_files, scenes

CONFIGS = sorted(name for name in WHOLE if name.endswith(".yaml"))
TOYS = [name for name in CONFIGS if "name: pixels" in WHOLE[name].text]
STAGES = [name for name in CONFIGS if name.startswith("stage_")]  # test_project_page.py runs them, each from the one before
OTHERS = [name for name in CONFIGS if name not in (*TOYS, *STAGES)]
TESTS = sorted(name for name in WHOLE if name.startswith("test_"))


COUPLED = ("grpo", "grpo-guard", "dppo")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every file of the pages, and the prompts that their configs name."""
    write_files(tmp_path)
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same, with the Python files on the path."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in set(sys.modules) - before:
        if name in {Path(file).stem for file in WHOLE}:
            del sys.modules[name]


def flowfactory(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.output


def test_no_two_files_have_one_name() -> None:
    names = [block.file for block in BLOCKS if block.file]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("name", TOYS)
def test_a_config_on_the_toy_model_trains(folder: Path, name: str) -> None:
    output = flowfactory("run", name, "--out", "run")
    assert "iteration 2/2" in output
    assert "warning:" not in output
    assert len((folder / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    if "heldout" in WHOLE[name].text:
        assert "held-out brightness" in output


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_config_is_valid(folder: Path, name: str) -> None:
    told = flowfactory("run", name, "--dry-run").splitlines(keepends=True)
    few = re.compile(r"warning: sampling\.groups \d+: there are 3 prompts")  # where readers have the bundled ones
    shown = parse_yaml("".join(line for line in told if not few.match(line)), name)
    assert shown["model"]["name"] in WHOLE[name].text
    if shown["training"]["precision"] == "bf16" and shown["algorithm"]["name"] in COUPLED:
        assert shown["sampling"]["batch_size"] == shown["training"]["batch_size"], "the first ratio would be rounding"


@pytest.mark.parametrize("name", TESTS)
def test_a_test_for_authors_passes(importable: Path, name: str) -> None:
    module = importlib.import_module(Path(name).stem)
    functions = [function for key, function in vars(module).items() if key.startswith("test_")]
    assert functions
    for function in functions:
        marks = getattr(function, "pytestmark", [])
        for value in marks[0].args[1] if marks else [None]:
            function(*([value] if marks else []))


def test_sampling_under_kept_weights_leaves_the_present_ones(folder: Path) -> None:
    flowfactory("run", "regression.yaml", "--out", "run")
    flowfactory("run", "regression.yaml", "--out", "run", "--resume", "--set", "training.iterations=3")
    scores = json.loads(flowfactory("eval", "run"))
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert scores["eval/brightness/mean"] == pytest.approx(records[-1]["eval/brightness/mean"], abs=1e-6)


def test_packaged_it_is_the_same_file(importable: Path) -> None:
    entries = tomllib.loads(WHOLE["pyproject.toml"].text)["project"]["entry-points"]["flowfactory"]
    information = importable / "flowfactory_brightness-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: flowfactory-brightness\nVersion: 0.1.0\n")
    lines = "".join(f"{name} = {module}\n" for name, module in entries.items())
    (information / "entry_points.txt").write_text(f"[flowfactory]\n{lines}")
    listed = json.loads(flowfactory("plugins", "list", "--json"))["components"]
    (found,) = [row for row in listed if row["name"] == "brightness"]
    assert (found["kind"], found["distribution"], found["version"]) == ("reward", "flowfactory-brightness", "0.1.0")


def test_the_errors_of_rewards_are_told_as_the_page_says(folder: Path) -> None:
    page = (DOCS / "reward.md").read_text(encoding="utf-8")
    good = WHOLE["brightness.py"].text
    score = next(line for line in good.splitlines() if "return {self.label" in line).strip()
    changes = {
        "without `@hookimpl`": good.replace("    @hookimpl\n    def", "    def"),
        "a misspelled hook": good.replace("compute_reward", "compute_rewards"),
        "a misspelled parameter": good.replace("samples", "sampels"),
        "`build` returns": good.replace("return Brightness(label, self.target)", "return Brightness"),
        "without `return`": good.replace(score, score.removeprefix("return ")),
        "wrong shape": good.replace(score, "return {self.label: samples.media.mean()[None]}"),
        "not a number": good.replace(score, "return {self.label: samples.media.flatten(1).mean(1) * float('nan')}"),
        "as a list": good.replace(score, "return {self.label: samples.media.flatten(1).mean(1).tolist()}"),
        "another label": good.replace("{self.label:", "{'other':"),
        "all equal": good.replace(score, "return {self.label: samples.media.flatten(1).mean(1) * 0}"),
    }
    for row, text in changes.items():
        (folder / "brightness.py").write_text(text)
        with pytest.raises((UserError, RunError)) as raised:
            flowfactory("run", "brightness.yaml", "--out", row.replace(" ", "_"))
        _, _, said, code, _ = next(line for line in page.splitlines() if line.startswith("|") and row in line).split("|")
        assert said.strip().strip("`") in str(raised.value)
        assert int(code) == (2 if raised.type is UserError else 1)
    (folder / "brightness.py").write_text(good)
    with pytest.raises(UserError, match="did you mean 'target'"):
        flowfactory("run", "brightness.yaml", "--dry-run", "--set", "rewards.brightness={name: brightness, taget: 1}")


def test_a_term_without_a_gradient_is_told_as_the_page_says(folder: Path) -> None:
    text = WHOLE["reinforce.py"].text
    (folder / "reinforce.py").write_text(text.replace("mean_kl(new.mean,", "mean_kl(new.mean.detach(),"))
    with pytest.raises(RunError) as raised:
        flowfactory("run", "reinforce.yaml", "--out", "run")
    told = str(raised.value).partition(";")[0]
    assert f"stopped: {told}\n" in (DOCS / "algorithm.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: b.file or b.page.stem)
def test_python_compiles(block: Block) -> None:
    tree = ast.parse(block.text)
    assert max(len(line) for line in block.text.splitlines()) <= 128
    assert tree.body


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda b: b.file or b.page.stem)
def test_yaml_parses(block: Block) -> None:
    assert isinstance(parse_yaml(block.text, block.page.name), dict)


COMMANDS = {
    b.page.name + ": " + line[2:] for b in BLOCKS if b.language == "console" for line in b.text.splitlines() if line[:2] == "$ "
}


@pytest.mark.parametrize("line", sorted(line for line in COMMANDS if ": flowfactory " in line))
def test_a_command_has_the_options_it_is_shown_with(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = line.split(": ", 1)[1].split()[1:]
    if words[0].startswith("-"):  # of the command line itself
        assert words[0] in flowfactory("--help")
        return
    shown = flowfactory(*words[: 2 if words[0] in ("plugins", "cache") else 1], "--help")
    for word in words:
        if word.startswith("--"):
            assert word in shown


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading.replace("`", "")) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", [*WRITTEN, ROOT / "README.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


def options() -> ModuleType:
    return docs_modules.load("options")


TABLES = sorted(
    {(page, words) for page in PAGES for words in re.findall(r"^```{options} (.*)$", page.read_text(), re.MULTILINE)}
)


def sections(config: type[BaseModel], prefix: str = "") -> Iterator[str]:
    made = options()
    for key, field in config.model_fields.items():
        if made.is_section(field.annotation):
            yield f"{prefix}{key}"
            yield from sections(field.annotation, f"{prefix}{key}.")


def test_the_page_on_the_config_has_a_table_of_every_section() -> None:
    on_the_page = {words for page, words in TABLES if page.name == "config.md"}
    assert {"run", "model", "lora", *sections(options().config_class("run"))} <= on_the_page


@pytest.mark.parametrize(("page", "words"), TABLES, ids=lambda value: value if isinstance(value, str) else value.stem)
def test_a_table_tells_of_every_key_its_meaning_and_of_every_number_its_unit(page: Path, words: str) -> None:
    made = options()
    config = made.config_class(words)
    for key, type_, _, unit, meaning in made.rows(config):
        assert meaning, f"{config.__name__}.{key} has no meaning"
        if "number" in type_ and f"{config.__name__}.{key}" != "RunConfig.seed":
            assert unit, f"{config.__name__}.{key} has no unit"


def test_the_page_on_the_tiny_world_has_its_numbers() -> None:
    page = " ".join((DOCS / "models" / "tiny.md").read_text(encoding="utf-8").split())
    for kind in scenes.KINDS:
        example = re.search(rf"\| {kind} \| `([^`]*)`[^|]*\| (\d+) \|", page)
        assert example is not None
        assert scenes.parse_caption(example.group(1)).kind == kind
        assert int(example.group(2)) == len(list(scenes.enumerate_descriptions(kind)))
    splits = prompt_files.choose_captions()
    told = "{train} prompts to train on, {validation} to choose hyper-parameters by and {heldout} to hold out"
    assert told.format_map({name: len(captions) for name, captions in splits.items()}) in page
    for words in (scenes.COLORS, scenes.SHAPES, scenes.BACKGROUNDS, scenes.SIZES, scenes.RELATIONS, scenes.COUNTS):
        assert f"({', '.join(words)})" in page
    assert f"{pretrain.VAE_STEPS} steps of {pretrain.VAE_BATCH} pictures" in page
    assert f"{pretrain.TRUE_STEPS} steps of {pretrain.FLOW_BATCH} pictures" in page
    assert f"{pretrain.MISTAKEN_STEPS} steps" in page


def test_nothing_is_left_to_do_outside_the_marked_regions() -> None:
    for page in WRITTEN:
        text = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"\b(TODO|FIXME|TBD|XXX)\b", text), page


def merged(base: dict, more: dict) -> dict:
    mapping = {key: merged(base[key], value) if isinstance(base.get(key), dict) else value for key, value in more.items()}
    return base | mapping


FRAGMENTS = [
    block
    for page in sorted((DOCS / "algorithms").glob("*.md"))
    for block in blocks_of(page)
    if block.language == "yaml" and not block.file
]


@pytest.mark.parametrize("block", FRAGMENTS, ids=lambda block: f"{block.page.stem}: {block.text.splitlines()[0]}")
def test_a_part_of_a_config_in_a_page_of_an_algorithm_completes_the_example_of_that_algorithm(block):
    example = discover().components["example"][block.page.stem].spec
    raw = merged(parse_yaml(example.read_text(), example.name), parse_yaml(block.text, block.page.name))
    assert validate(raw, folder=example.parent).algorithm.name == block.page.stem
