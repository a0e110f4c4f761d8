from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from flowfactory.config import loading as configs
from flowfactory.config.component_slots import config_class
from flowfactory.discovery import own_packages
from flowfactory.discovery.catalogue import Catalogue
from flowfactory.discovery.discover import discover
from flowfactory.errors import UserError
from flowfactory.suggestions import did_you_mean
from flowfactory.testing import TwoParameterConfig

Command = Callable[..., subprocess.CompletedProcess[str]]
HEAD = "from flowfactory import hookimpl\n@hookimpl\ndef register_components(register):\n"


def install(site: Path, name: str, source: str, version: str = "1.2.3", entry: str = "", requires: str = "") -> None:
    """What ``pip install`` leaves of a distribution with one module and one entry point, called ``entry`` or as the module."""
    site.mkdir(exist_ok=True)
    (site / f"{name}.py").write_text(source)
    info = site / f"ff_{name}-{version}.dist-info"
    info.mkdir()
    requires = f"Requires-Dist: {requires}\n" if requires else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ff-{name}\nVersion: {version}\n{requires}")
    (info / "entry_points.txt").write_text(f"[flowfactory]\n{entry or name} = {name}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return folder


def test_core_brings_its_dynamics_and_trackers() -> None:
    found = discover()
    names = {kind: set(components) for kind, components in found.components.items() if components}
    assert names == {
        "dynamics": {"ode", "dpm-solver", "heun", "flow-sde", "dance-sde", "cps"},
        "tracker": {"csv", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"},
    }
    assert found.broken == []
    assert found.components["dynamics"]["ode"].plugin == "core"


def test_a_file_is_a_plugin(toy: Path) -> None:
    found = discover([toy])
    assert set(found.components["model"]) == {"toy", "net", "experts"}
    assert found.components["reward"]["bright"].plugin == "toy_plugin.py"
    assert config_class(found.find("model", "toy")) is TwoParameterConfig


def test_the_same_file_twice_is_one_plugin(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(toy.parent)
    assert set(discover([toy, toy, tmp_path / "link/toy_plugin.py"]).components["algorithm"]) == {"score"}


def test_an_installed_plugin_is_found_and_a_broken_one_listed(
    site: Path, toy: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "aglow", HEAD + "    register('reward', 'glow', 'aglow_missing:Config')\n")
    install(site, "bshattered", "import no_such_thing\n")
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "aglow, bshattered")
    done = command("plugins", "list", "--plugin", toy, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    listed = json.loads(done.stdout)
    found = {(row["kind"], row["name"]): row for row in listed["components"]}
    glow, bright = found["reward", "glow"], found["reward", "bright"]
    assert (glow["distribution"], glow["version"], glow["full_name"]) == ("ff-aglow", "1.2.3", "ff-aglow:glow")
    assert (bright["plugin"], bright["description"]) == ("toy_plugin.py", "The mean of the pixels.")
    (broken,) = [row for row in listed["plugins"] if row["status"] == "broken"]
    assert broken["told"] == "ModuleNotFoundError: No module named 'no_such_thing' (bshattered.py line 1)"
    assert (broken["plugin"], broken["distribution"]) == ("bshattered", "ff-bshattered")
    assert all(row["seconds"] >= 0 for row in listed["plugins"])
    done = command("plugins", "list", "--plugin", toy)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "bright The mean of the pixels." in lines
    assert next(line for line in lines if line.startswith("bshattered ")).split()[1] == "broken"
    assert broken["told"] in lines


def test_a_broken_plugin_is_fatal_just_where_it_is_missed(
    site: Path, config_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "cshattered", "raise RuntimeError('needs a licence')\n")
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "cshattered")
    assert configs.load(config_file()).seed == 7
    with pytest.raises(UserError) as refused:
        configs.load(config_file({"rewards": {"x": {"name": "licensed"}}}))
    assert str(refused.value).startswith(
        "config.yaml: rewards.x: no reward called 'licensed'; there is bright; "
        "plugin 'cshattered' could not be loaded: RuntimeError: needs a licence (cshattered.py line 1)"
    )


def test_a_component_that_does_not_import_is_fatal_just_where_it_is_named(
    site: Path, config_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "dlazy", HEAD + "    register('reward', 'lazy', 'dlazy_missing:Config')\n")
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "dlazy")
    assert configs.load(config_file()).seed == 7
    with pytest.raises(UserError) as refused:
        configs.load(config_file({"rewards": {"x": "lazy"}}))
    assert "reward 'lazy' of ff-dlazy 1.2.3 cannot be loaded: ModuleNotFoundError: No module named 'd" in str(refused.value)


def test_the_environment_narrows_what_is_loaded(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("eone", "etwo", "ethree"):
        install(site, name, HEAD + f"    register('reward', '{name}', 'x:y')\n")
    for chosen, rewards in [
        ("eone", {"eone"}),
        (" eone , ethree,", {"eone", "ethree"}),
        ("ff-etwo,ethree", {"etwo", "ethree"}),
        ("", set()),
        ("core", set()),
        ("flowfactory", set()),
    ]:
        monkeypatch.setenv("FLOWFACTORY_PLUGINS", chosen)
        assert set(discover().components["reward"]) == rewards
        assert set(discover().components["dynamics"]) == {"ode", "dpm-solver", "heun", "flow-sde", "dance-sde", "cps"}
    monkeypatch.delenv("FLOWFACTORY_PLUGINS")
    assert {"eone", "etwo", "ethree"} <= set(discover().components["reward"])


def test_half_a_plugin_is_not_kept(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "ftwo", HEAD + "    register('reward', 'shine', 'x:y')\n    register('reward', 'shine', 'x:y')\n")
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "ftwo")
    found = discover()
    assert not found.components["reward"]
    assert [(b.plugin, b.sentence) for b in found.broken] == [("ftwo", "registers the reward 'shine' twice")]


GLOWS = """from flowfactory import ComponentConfig, hookimpl
class Config(ComponentConfig):
    strength: float = {strength}
    def build(self, label): ...
@hookimpl
def register_components(register):
    register("reward", "glow", Config)
    register("dynamics", "ode", Config)
"""


@pytest.fixture
def two_glows(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two distributions whose entry points and components have the same names."""
    for name, strength in (("jone", 1), ("jtwo", 2)):
        install(site, name, GLOWS.format(strength=strength), entry="glow")
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "glow")


@pytest.mark.usefixtures("two_glows")
def test_of_two_components_of_one_name_both_stay_and_the_distribution_chooses(config_file: Callable[..., Path]) -> None:
    assert discover().broken == []
    with pytest.raises(UserError) as refused:
        configs.load(config_file({"rewards": {"x": "glow"}}))
    assert str(refused.value) == (
        "config.yaml: rewards.x: reward 'glow' is brought by ff-jone 1.2.3 and ff-jtwo 1.2.3; "
        "write 'ff-jone:glow' or 'ff-jtwo:glow'"
    )
    loaded = configs.load(config_file({"rewards": {"x": "ff-jone:glow", "y": {"name": "ff-jtwo:glow"}}}))
    assert [loaded.rewards[label].model_dump()["strength"] for label in ("x", "y")] == [1, 2]


@pytest.mark.usefixtures("two_glows")
def test_nobody_takes_the_default_dynamics_away(config_file: Callable[..., Path]) -> None:
    plain = config_file({"sampling": {"dynamics": None}})
    with pytest.raises(UserError, match=r"^config\.yaml: algorithm score needs stochastic dynamics$"):  # core's, which are not
        configs.load(plain)
    with pytest.raises(UserError, match=r"dynamics 'ode' is brought by flowfactory \S+ and ff-jone 1\.2\.3 and ff-jtwo"):
        configs.load(config_file({"sampling": {"dynamics": "ode"}}))


@pytest.mark.usefixtures("two_glows")
def test_both_of_one_name_are_listed_and_shown(invoke: Callable[..., tuple[int, str, str]]) -> None:
    _, out, _ = invoke("plugins", "list")
    assert {"ff-jone:glow", "ff-jtwo:glow", "flowfactory:ode"} <= {line.split()[0] for line in out.splitlines() if line}
    _, out, _ = invoke("plugins", "show", "glow")
    assert [line for line in out.splitlines() if "strength: a number" in line] == [
        "  strength: a number; default 1",
        "  strength: a number; default 2",
    ]
    _, out, _ = invoke("plugins", "show", "ff-jtwo:glow")
    assert "reward glow, from ff-jtwo 1.2.3" in out


def test_the_full_name_chooses_where_one_alone_is_installed_too(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "kone", GLOWS.format(strength=1))
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "kone")
    assert discover().find("reward", "ff-kone:glow").version == "1.2.3"
    with pytest.raises(UserError, match=r"^no reward called 'ff-kone:glwo'; did you mean"):
        discover().find("reward", "ff-kone:glwo")


def test_files_of_one_name_in_two_folders_are_two_plugins(tmp_path: Path) -> None:
    files = [tmp_path / folder / "p.py" for folder in ("a", "b")]
    for strength, file in enumerate(files):
        file.parent.mkdir()
        file.write_text(GLOWS.format(strength=strength))
    found = discover(files)
    for strength, file in enumerate(files):
        config: Any = config_class(found.find("reward", f"{file}:glow"))
        assert config().strength == strength


def test_what_is_left_out_or_broken_is_named_where_it_may_be_meant(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "ff_glow_pack", "raise RuntimeError('needs a licence')\n")
    install(site, "fother", "raise RuntimeError('other')\n")
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "ff_glow_pack,fother")
    with pytest.raises(UserError) as refused:
        discover().find("reward", "glow")
    assert str(refused.value) == (
        "no reward called 'glow'; none is installed; plugin 'ff_glow_pack' could not be loaded: "
        "RuntimeError: needs a licence (ff_glow_pack.py line 1)"
    )
    with pytest.raises(UserError, match=r"'ff_glow_pack' could not be loaded: .*; plugin 'fother' could not be loaded: "):
        discover().find("reward", "shine")
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "fother")
    with pytest.raises(UserError, match=r"; FLOWFACTORY_PLUGINS leaves out 'ff_glow_pack'$"):
        discover().find("reward", "glow")


def test_the_environment_may_name_just_what_is_installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "fglow", GLOWS.format(strength=1))
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "fglwo")
    with pytest.raises(UserError) as refused:
        discover()
    assert str(refused.value) == (
        "the environment variable FLOWFACTORY_PLUGINS names 'fglwo', which no installed plugin has; did you mean 'fglow'?"
    )
    for together in ("fglow;core", "fglow core"):
        monkeypatch.setenv("FLOWFACTORY_PLUGINS", together)
        with pytest.raises(UserError, match=rf"names '{together}', which .* has; separate several with commas$"):
            discover()


def test_what_is_not_found_may_be_among_what_the_environment_leaves_out(
    site: Path, monkeypatch: pytest.MonkeyPatch, config_file: Callable[..., Path]
) -> None:
    install(site, "fglow", GLOWS.format(strength=1) + "    register('example', 'demonstration', 'x.yaml')\n")
    install(site, "fother", HEAD + "    register('reward', 'shine', 'x:y')\n")
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "fother")
    told = "; FLOWFACTORY_PLUGINS leaves out others that are installed; unset it to load them"
    with pytest.raises(UserError, match=rf"^no reward called 'glow'; there is shine{told}$"):
        discover().find("reward", "glow")
    with pytest.raises(UserError, match=r"^no reward called 'shin'; did you mean 'shine'\?$"):
        discover().find("reward", "shin")
    with pytest.raises(UserError, match=rf"^no file demonstration, and no example of that name; none is installed{told}$"):
        configs.load("demonstration")
    with pytest.raises(UserError, match=r"^no file demonstration\.yaml, and no example of that name; none is installed$"):
        configs.load("demonstration.yaml")
    monkeypatch.delenv("FLOWFACTORY_PLUGINS")
    assert configs.find_config("demonstration") == Path("x.yaml")


def test_a_plugin_that_ends_the_process_or_holds_it_up_is_named(
    site: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "gends", "import sys\nsys.exit('no licence')\n")
    install(site, "gheavy", "import torch\nprint('hello')\n" + HEAD + "    ...\n")
    install(site, "gsleeps", "import time\ntime.sleep(0.6)\n" + HEAD + "    ...\n")
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "gends,gheavy,gsleeps")
    done = command("plugins", "list", "--json")
    assert (done.returncode, done.stderr) == (0, "hello\n")
    told = {(row["status"], row["plugin"]): row["told"] for row in json.loads(done.stdout)["plugins"]}
    assert told["broken", "gends"] == "SystemExit: no licence (gends.py line 2)"
    seconds = r"\d+\.\d s"
    assert re.fullmatch(rf"{seconds}: imports torch when it is asked what it brings; register .*", told["slow", "gheavy"])
    assert re.fullmatch(rf"{seconds} to say what it brings", told["slow", "gsleeps"])
    assert ("slow", "core") not in told


@pytest.mark.parametrize(
    ("requires", "fits"),
    [
        ("flowfactory", True),
        ("flowfactory>=0.0.1", True),
        ("flowfactory[video]>=0.0.1", True),
        ("flowfactory==99.*", False),
        ("flowfactory~=99.0.0", False),
        ('flowfactory==99.*; extra == "more"', True),
        ("flowfactory-rewards==99.*", True),
        ("flowfactory>=", True),
    ],
)
def test_a_plugin_for_another_version_of_core_is_told_and_not_used(
    requires: str, fits: bool, site: Path, invoke: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "hglow", GLOWS.format(strength=1), requires=requires)
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "hglow")
    _, out, _ = invoke("plugins", "list", "--json")
    (row,) = [row for row in json.loads(out)["plugins"] if row["plugin"] == "hglow"]
    assert (row["status"] == "unfit") is not fits
    if fits:
        discover().find("reward", "glow")
        return
    with pytest.raises(UserError) as refused:
        discover().find("reward", "glow")
    versions = requires.removeprefix("flowfactory")
    told = (
        f"reward 'glow': ff-hglow 1.2.3 is written for a newer flowfactory ({versions}) than {metadata.version('flowfactory')}"
    )
    assert str(refused.value) == f"{told}, which is installed; pip install 'flowfactory{versions}'"


def test_a_config_without_build_is_told_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(GLOWS.format(strength=1).replace("build", "make"))
    with pytest.raises(UserError) as refused:
        config_class(discover([tmp_path / "p.py"]).find("reward", "glow"))
    assert str(refused.value) == (
        "reward 'glow' of p.py: Config (p.py line 2) has no build; write 'def build(self, label)' that returns the component"
    )


def test_one_name_may_stand_for_two_kinds(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(HEAD + "    register('reward', 'x', 'a:b')\n    register('model', 'x', 'c:d')\n")
    found = discover([tmp_path / "p.py"])
    assert (found.find("reward", "x").spec, found.find("model", "x").spec) == ("a:b", "c:d")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("def", "SyntaxError: "),
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("x = 1", "has no function register_components; write one and mark it with @hookimpl"),
        ("def register_components(register): ...", "register_components (p.py line 1) is not marked and would never be called"),
        (
            HEAD.replace("components", "component") + "    ...",
            "register_component (p.py line 2) is marked with @hookimpl, and no hook is called 'register_component'; "
            "did you mean 'register_components'?",
        ),
        (HEAD + "    register('reward', 'a:b', 'a:b')", "registers a reward as 'a:b'; a name is text without a colon"),
        (HEAD + "    register('reward', 'x')", "TypeError: "),
        ("import sys\nsys.exit(3)", "SystemExit: 3 (p.py line 2)"),
        (HEAD + "    register('rewards', 'x', 'a:b')", "registers 'x' as a 'rewards'; did you mean 'reward'?"),
        (
            HEAD.replace("(register)", "(registr)") + "    ...",
            "register_components (p.py line 2): register_components gives no 'registr'; did you mean 'register'?",
        ),
    ],
)
def test_a_file_that_is_no_plugin_is_refused_with_the_reason(source: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    path.write_text(source + "\n")
    with pytest.raises(UserError) as refused:
        discover([path])
    assert str(refused.value).startswith(f"plugin {path}: {sentence}")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^plugin .*nothing\.py: no such file$"):
        discover([tmp_path / "nothing.py"])


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("'json:JSONDecoder'", r"JSONDecoder \(decoder\.py line \d+\)"),
        ("3", "3"),
        ("dict", "dict"),
        ("Glow", r"Glow \(p\.py line 5\)"),
        ("register_components", r"register_components \(p\.py line 2\)"),
    ],
)
def test_what_is_registered_must_be_a_config(spec: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(HEAD + f"    register('algorithm', 'x', {spec})\nclass Glow: ...\n")
    with pytest.raises(UserError, match=rf"^algorithm 'x' of p\.py registers {told}; register a subclass of flow"):
        config_class(discover([tmp_path / "p.py"]).find("algorithm", "x"))


def test_the_nearest_name_is_suggested_or_all_are_listed() -> None:
    assert did_you_mean("gpro", ["grpo", "nft", "awm"]) == "; did you mean 'grpo'?"
    assert did_you_mean("zzz", ["nft", "awm"]) == "; there is awm, nft"
    assert did_you_mean("zzz", []) == "; none is installed"


def test_show_prints_what_a_component_is_and_its_options(toy: Path, invoke: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = invoke("plugins", "show", "bright", "--plugin", toy)
    assert (code, err) == (0, "")
    assert "reward bright, from toy_plugin.py" in out
    assert "The mean of the pixels." in out
    scale = next(line for line in out.splitlines() if "scale" in line)
    assert "a number; default 1;" in scale
    assert "what the score is multiplied by" in scale
    code, out, err = invoke("plugins", "show", "brihgt", "--plugin", toy)
    assert (code, out, err) == (2, "", "error: no component called 'brihgt'; did you mean 'bright'?\n")


PROBE = """
import json, resource, sys
sys.argv = ["flowfactory", *{arguments!r}]
from flowfactory.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = [name for name in ("torch", "numpy", "peft", "PIL", "yaml", "flowfactory.config.schema") if name in sys.modules]
print(json.dumps([heavy, resource.getrusage(resource.RUSAGE_SELF).ru_utime]), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["plugins", "list"], ["cache"]])
def test_asking_what_there_is_loads_nothing_heavy(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = []
    for _ in range(3):  # the least of three, since other processes share the machine
        done = subprocess.run(
            [sys.executable, "-c", PROBE.format(arguments=arguments)], capture_output=True, text=True, check=True, timeout=300
        )
        heavy, user = json.loads(done.stderr.splitlines()[-1])
        assert heavy == []
        assert done.stdout
        seconds.append(user)
        if user < 1:
            break
    assert min(seconds) < 1  # a third of it is usual, and a machine may be slower; torch alone takes several


def test_a_component_that_is_not_installed_is_told_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_packages, "installed_version", lambda package: None)
    catalogue = Catalogue([], [], [], [], [])
    with pytest.raises(UserError, match="no algorithm called 'grpo'; it comes with flowfactory-grpo, which is not installed"):
        catalogue.find("algorithm", "grpo")
    with pytest.raises(UserError, match="no algorithm called 'gpro'; none is installed"):
        catalogue.find("algorithm", "gpro")
