"""A path is what its reader means: from the home folder, from a variable, from its file or from where it was typed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flowfactory.config import loading
from flowfactory.config.component_slots import parse_component
from flowfactory.config.paths import CheckpointPath, LocalPath, expand
from flowfactory.config.yaml import dump
from flowfactory.data.cache_folder import default_folder
from flowfactory.errors import UserError

ConfigFile = Callable[..., Path]
PLUGIN = """
from flowfactory import CheckpointPath, ComponentConfig, LocalPath, hookimpl

class ReaderConfig(ComponentConfig):
    folder: CheckpointPath
    words: LocalPath
    def build(self, label): ...

@hookimpl
def register_components(register):
    register("reward", "reader", ReaderConfig)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with prompts, weights and a plugin, which $DATA names too."""
    folder = tmp_path / "home"
    (folder / "weights").mkdir(parents=True)
    (folder / "words.txt").write_text("red\n")
    (folder / "reader.py").write_text(PLUGIN)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("DATA", str(folder))
    return folder


@pytest.mark.parametrize("start", ["~", "$DATA", "${DATA}", "$HOME/../home"])
def test_every_path_of_a_config_knows_the_home_folder_and_variables(
    start: str, home: Path, toy: Path, config_file: ConfigFile
) -> None:
    path = config_file(
        {
            "prompts": {"train": f"{start}/words.txt", "heldout": f"{start}/words.txt"},
            "rewards": {"r": {"name": "reader", "folder": f"{start}/weights", "words": f"{start}/words.txt"}},
            "output": {"dir": f"{start}/runs"},
            "plugins": [str(toy), f"{start}/reader.py"],
        }
    )
    made = loading.load(path)
    assert (made.prompts.train, made.prompts.heldout, made.output.dir) == (home / "words.txt",) * 2 + (home / "runs",)
    assert made.rewards["r"].model_dump() | {"folder": str(home / "weights"), "words": home / "words.txt"} == (
        made.rewards["r"].model_dump()
    )
    assert made.plugins == (toy, home / "reader.py")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"prompts": {"train": "$NOWHERE/words.txt"}}, "prompts.train"),
        ({"prompts": {"heldout": "a/${NOWHERE}.txt"}}, "prompts.heldout"),
        ({"output": {"dir": "$NOWHERE"}}, "output.dir"),
        ({"plugins": ["$NOWHERE/toy.py"]}, "plugins"),
    ],
)
def test_a_variable_that_is_not_set_is_named(
    change: dict[str, object], place: str, config_file: ConfigFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    for value in (None, ""):
        if value is not None:
            monkeypatch.setenv("NOWHERE", value)
        with pytest.raises(UserError) as refused:
            loading.load(config_file(change))
        message = str(refused.value)
        assert message.startswith(f"config.yaml: {place}: '")
        assert message.endswith("': the environment variable 'NOWHERE' is not set; set it, or write $$ for a $")


def test_a_dollar_that_names_nothing_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "x")
    assert [expand(text) for text in ("5$", "$1/a", "$$A", "$A$A", "${A}b", "~nobody-of-this-name/x", "a~")] == [
        *("5$", "$1/a", "$A", "xx", "xb", "~nobody-of-this-name/x", "a~")
    ]


class Paths(BaseModel):
    local: LocalPath
    checkpoint: CheckpointPath


def test_a_folder_with_a_dollar_in_its_name_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "$HOME"
    folder.mkdir()
    made = Paths.model_validate({"local": "w", "checkpoint": "."}, context={"folder": folder})
    assert (made.local, made.checkpoint) == (folder / "w", str(folder))
    assert Paths.model_validate(made.model_dump(mode="json")) == made
    monkeypatch.chdir(folder)
    made = Paths.model_validate({"local": Path("w"), "checkpoint": "owner/name"}, context={"folder": Path.cwd()})
    assert (made.local, made.checkpoint) == (folder / "w", "owner/name")


def test_a_config_that_lies_in_such_a_folder_reads_back(
    config_file: ConfigFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "$NOWHERE"
    folder.mkdir()
    path = config_file()
    for file in (path, tmp_path / "train.txt", tmp_path / "heldout.txt"):
        file.rename(folder / file.name)
    monkeypatch.chdir(folder)
    made = loading.load("config.yaml")
    assert (made.prompts.train, made.output.dir) == (folder / "train.txt", folder / "runs/config")
    (tmp_path / "again.yaml").write_text(dump(made))
    assert loading.load(tmp_path / "again.yaml").model_dump() == made.model_dump()


def test_a_variable_may_name_a_hub_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OWNER", "somebody")
    made = Paths.model_validate({"local": "x", "checkpoint": "$OWNER/model"}, context={"folder": tmp_path})
    assert made.checkpoint == "somebody/model"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match=r"there is no folder .*home/none"):
        Paths.model_validate({"local": "x", "checkpoint": "~/none"}, context={"folder": tmp_path})


def test_what_is_typed_is_relative_to_where_it_is_typed(
    config_file: ConfigFile, toy: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_file()
    here = tmp_path / "here"
    here.mkdir()
    for name, file in (("toy.py", toy), ("words.txt", home / "words.txt"), ("reader.py", home / "reader.py")):
        (here / name).write_text(file.read_text())
    (here / "weights").mkdir()
    monkeypatch.chdir(here)
    reward = "rewards={r: {name: reader, folder: ./weights, words: words.txt}}"
    sets = ["plugins=[toy.py, reader.py]", "prompts.train=words.txt", "output.dir=out", reward]
    made = loading.load(path, sets)
    assert made.plugins == (here / "toy.py", here / "reader.py")
    assert (made.prompts.train, made.prompts.heldout, made.output.dir) == (
        *(here / "words.txt", tmp_path / "heldout.txt", here / "out"),
    )
    assert made.rewards["r"].model_dump()["words"] == here / "words.txt"
    assert made.rewards["r"].model_dump()["folder"] == str(here / "weights")
    assert loading.load(Path("..") / path.name, out=Path("o"), plugins=[Path("reader.py")]).output.dir == here / "o"
    served = parse_component("reward", {"name": "reader", "folder": "~/weights", "words": "w"}, [here / "reader.py"], home)
    assert served.model_dump()["folder"] == str(home / "weights")


TEXT = "a cat on a mat " * 28
TOO_LONG = f"'{TEXT[:97]} … is too long for the name of a file; give a path"


@pytest.mark.parametrize(
    "place", ["prompts.train", "prompts.heldout", "output.dir", "plugins.0", "rewards.r.folder", "rewards.r.words"]
)
def test_a_text_in_the_place_of_a_path_is_one_line(place: str, config_file: ConfigFile, toy: Path, home: Path) -> None:
    options: Any = {
        "prompts": {},
        "output": {},
        "plugins": [str(toy), str(home / "reader.py")],
        "rewards": {"r": {"name": "reader", "folder": str(home), "words": "w"}},
    }
    *way, key = place.split(".")
    node = options
    for part in way:
        node = node[part]
    node[int(key) if key == "0" else key] = TEXT
    with pytest.raises(UserError) as refused:
        loading.load(config_file(options))
    assert str(refused.value) == f"config.yaml: {place.removesuffix('.0')}: {TOO_LONG}"


def test_a_text_in_the_place_of_a_path_is_one_line_where_it_is_typed(
    config_file: ConfigFile, invoke: Callable[..., tuple[int, str, str]]
) -> None:
    config = str(config_file())
    for command in (
        ["run", TEXT],
        ["run", config, f"--plugin={TEXT}"],
        ["run", config, f"--out={TEXT}"],
        ["estimate", TEXT],
        ["report", TEXT],
        ["sample", TEXT, "a cat"],
        ["serve", f"{TEXT}.yaml"],
    ):
        code, _, err = invoke(*command)
        assert (code, err) == (2, f"error: {TOO_LONG}\n"), command
    code, _, err = invoke("run", config, "--dry-run", f"--set=output.dir={TEXT}")
    assert (code, err) == (2, f"error: --set output.dir: {TOO_LONG}\n")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "got ''; give a path"),
        ("  ", "got '  '; give a path"),
        ("https://a.org/b.txt", "'https://a.org/b.txt' is a URL; give a path on this machine"),
        ("S3://a/b", "'S3://a/b' is a URL; give a path on this machine"),
        (
            "~nobody-of-this-name/x",
            "there is no user 'nobody-of-this-name'; write ./~nobody-of-this-name for what is called so",
        ),
        ("a/" * 3000, "is too long for the name of a file; give a path"),
    ],
)
def test_what_is_no_path_is_refused(path: str, sentence: str, tmp_path: Path) -> None:
    for good in ({"local": path, "checkpoint": "."}, {"local": ".", "checkpoint": path}):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            Paths.model_validate(good, context={"folder": tmp_path})


def test_a_home_folder_that_is_not_known_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # of a user whom the system does not know
    with pytest.raises(ValueError, match=r"'~/x': the home folder is not known; set HOME"):
        Paths.model_validate({"local": "~/x", "checkpoint": "."}, context={"folder": tmp_path})


def test_odd_names_are_names(tmp_path: Path) -> None:
    for name in ("./~x", "a~", "c:", "a" * 255, "a:b/c"):
        made = Paths.model_validate({"local": name, "checkpoint": "."}, context={"folder": tmp_path})
        assert made.local == tmp_path / name


def test_none_is_not_written_so(config_file: ConfigFile, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        loading.load(config_file({"prompts": {"heldout": "None"}}))
    assert str(refused.value) == f"config.yaml: prompts.heldout: no file {tmp_path / 'None'}; for none, write null"
    with pytest.raises(UserError, match=r"^--set prompts\.negative: got null; give text: .*; did you mean ''\?$"):
        loading.load(config_file(), ["prompts.negative="])


@pytest.mark.parametrize("value", [[3], [None], "toy.py", {"a": 1}])
def test_plugins_that_are_no_files_are_refused(value: object, config_file: ConfigFile) -> None:
    with pytest.raises(UserError, match=r"^config\.yaml: plugins: got .*; give a list of files"):
        loading.load(config_file({"plugins": value}))


def test_the_command_line_reads_what_a_shell_leaves(
    home: Path, toy: Path, config_file: ConfigFile, invoke: Callable[..., tuple[int, str, str]]
) -> None:
    config_file(name="mine.yaml").rename(home / "mine.yaml")
    (home / "train.txt").write_text("red\n")
    (home / "heldout.txt").write_text("blue\n")
    code, out, err = invoke(
        "run", "~/mine.yaml", "--dry-run", "--out=~/run", "--plugin=~/reader.py", "--set=output.keep_last=3"
    )
    assert (code, err) == (0, "")
    assert f"dir: {home}/run" in out
    assert f"- {home}/reader.py" in out
    for command in (
        ["report", "~/run"],
        ["eval", "~/run"],
        ["export", "~/run", "~/o"],
        ["sample", "~/run", "a", "--image=~/x"],
    ):
        code, _, err = invoke(*command)
        assert code == 2
        assert str(home) in err
    code, _, err = invoke("serve", "~/none.yaml")
    assert (code, err) == (2, f"error: no file {home}/none.yaml\n")


def test_the_cache_may_be_named_from_the_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", "~/cache")
    assert default_folder() == home / "cache"
