from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flowfactory.config import loading
from flowfactory.config.component import ComponentConfig
from flowfactory.config.component_slots import config_class, loadable, schema_type
from flowfactory.config.overrides import apply_override
from flowfactory.config.schema import RunConfig
from flowfactory.config.yaml import dump, parse_yaml
from flowfactory.discovery.discover import discover
from flowfactory.errors import UserError

ConfigFile = Callable[..., Path]
Load = Callable[..., RunConfig]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1e4", -1e4),
        ("3E+2", 300.0),
        ("1.5e-3", 1.5e-3),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", float("-inf")),
        ("7", 7),
        ("-3", -3),
        ("1e", "1e"),
        ("e4", "e4"),
        ("1.2.3", "1.2.3"),
        ("1-4", "1-4"),
        ("'1e-4'", "1e-4"),
    ],
)
def test_numbers_are_read_as_yaml_1_2_reads_them(text: str, value: Any) -> None:
    read = parse_yaml(text, "here")
    assert (type(read), read) == (type(value), value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_python_prints_is_read_back_as_itself(number: float) -> None:
    assert parse_yaml(repr(number), "here") == number


class Deep(ComponentConfig):
    """An option that may hold anything."""

    anything: Any = None
    many: dict[str, list[float]] | None = None

    def build(self, label: str) -> object:
        return object()


@pytest.mark.parametrize("number", [".inf", "nan", "-1e400"])
@pytest.mark.parametrize(
    "place",
    [
        "training.optimizer.lr",
        "training.optimizer.weight_decay",
        "training.max_grad_norm",
        "training.iterations",
        "training.updates",
        "sampling.guidance",
        "sampling.group_size",
        "sampling.dynamics.noise_level",
        "advantages.clip",
        "distributed.timeout",
        "rewards.bright.weight",
        "rewards.bright.scale",
        "rewards.bright.timeout",
        "model.train.lora.alpha",
        "seed",
    ],
)
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(load: Load, place: str, number: str) -> None:
    config = {"sampling": {"dynamics": {"name": "flow-sde"}}, "rewards": {"bright": {"name": "bright"}}}
    with pytest.raises(UserError, match=rf"^--set {place}: (?!.*\n).*(finite|number|integer)"):
        load({**config, "model": {"name": "net", "train": {"lora": {}}}}, sets=[f"{place}={number}"])


@pytest.mark.parametrize(
    "given",
    [
        {"anything": float("inf")},
        {"anything": {"deep": [1, {"deeper": float("nan")}]}},
        {"many": {"a": [1.0, float("-inf")]}},
        {"many": {"a": ["nan"]}},
    ],
)
def test_a_plugins_options_hold_finite_numbers_alone(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Deep.model_validate(given)
    assert Deep.model_validate({"anything": [1e300, "inf"], "many": {"a": [0.5]}}).anything == [1e300, "inf"]


def test_so_do_those_of_every_component_that_is_installed() -> None:
    catalogue = discover()
    for kind, names in loadable(catalogue).items():
        for name in names:
            assert config_class(catalogue.find(kind, name)).model_config["allow_inf_nan"] is False, name


def test_a_learning_rate_without_a_point_is_a_number(config_file: ConfigFile) -> None:
    path = config_file()
    path.write_text(path.read_text().replace("lr: 0.02", "lr: 1e-4"))
    assert loading.load(path).training.optimizer.lr == 1e-4


def test_a_repeated_key_is_refused_with_its_line(config_file: ConfigFile) -> None:
    path = config_file()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "seed: 8"]))
    with pytest.raises(UserError, match=rf"^config\.yaml line {len(lines) + 1}: key 'seed' stands twice$"):
        loading.load(path)


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\tseed: 1", "a: 1\n b: 2", "? [1]\n: 2", "a: {{b}}", "a: *nowhere"])
def test_what_is_no_yaml_is_refused_with_file_and_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^here line \d: [^\n]+$"):
        parse_yaml(text, "here")


def test_a_shared_part_may_be_merged_in() -> None:
    text = "base: &base {name: bright, scale: 2}\nfirst: {<<: *base, scale: 3}\n"
    assert parse_yaml(text, "here")["first"] == {"name": "bright", "scale": 3}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r": there is nothing in it; give a mapping with model, algorithm, rewards, prompts, …$"),
        (b"# seed: 3\n", r": there is nothing in it; give a mapping with "),
        (b"- seed", r": got \[seed\]; give a mapping with "),
        (b"seed", r": got 'seed'; give a mapping with "),
        (b"3", r": got 3; give a mapping with "),
        ("seed: 3".encode("utf-16"), r": this is UTF-16 or UTF-32; save it as UTF-8$"),
        ("seed: 3".encode("utf-16-be"), r" line 1: it holds NUL, as UTF-16 and files that are no text do; save it as UTF-8$"),
        ("seed: 3\n# für\n".encode("latin-1"), r" line 2: this is no UTF-8; save it as UTF-8$"),
    ],
)
def test_a_file_that_holds_no_mapping_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"^c\.yaml" + sentence):
        loading.load(tmp_path / "c.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(UserError, match=r"c\.yaml"):
        loading.load(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"trainning": {}}, "config.yaml: trainning: unknown key; did you mean 'training'?"),
        ({"model": {"pp": 1}}, "config.yaml: model.pp: unknown key; did you mean 'p'?"),
        ({"algorithm": {"pul": 1}}, "config.yaml: algorithm.pul: unknown key; did you mean 'pull'?"),
        ({"rewards": {"bright": {"scal": 1}}}, "config.yaml: rewards.bright.scal: unknown key; did you mean 'scale'?"),
        ({"rewards": {"bright": {"wieght": 1}}}, "config.yaml: rewards.bright.wieght: unknown key; did you mean 'weight'?"),
        ({"prompts": {"held_out": "x"}}, "config.yaml: prompts.held_out: unknown key; did you mean 'heldout'?"),
        ({"sampling": {"stepps": 4}}, "config.yaml: sampling.stepps: unknown key; did you mean 'steps'?"),
        (
            {"sampling": {"dynamics": {"noise_levl": 1}}},
            "config.yaml: sampling.dynamics.noise_levl: unknown key; did you mean 'noise_level'?",
        ),
        ({"advantages": {"agregate": "sum"}}, "config.yaml: advantages.agregate: unknown key; did you mean 'aggregate'?"),
        ({"training": {"optimizer": {"rate": 1}}}, "config.yaml: training.optimizer.rate: unknown key; did you mean 'lr'?"),
        (
            {"evaluation": {"rewards": {"b": {"name": "bright", "scal": 2}}}},
            "config.yaml: evaluation.rewards.b.scal: unknown key; did you mean 'scale'?",
        ),
        ({"output": {"checkpoints": 3}}, "config.yaml: output.checkpoints: unknown key; did you mean 'checkpoint_every'?"),
        (
            {"model": {"name": "net", "train": {"lora": {"ranc": 4}}}},
            "config.yaml: model.train.lora.ranc: unknown key; did you mean 'rank'?",
        ),
        (
            {"model": {"name": "net", "train": {"lora": {"rank": 4}, "alpha": 3}}},
            "config.yaml: model.train.alpha: unknown key; did you mean 'model.train.lora.alpha'?",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_at_every_depth(load: Load, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        load(change)
    message = str(refused.value)
    assert message.startswith(sentence) if sentence.endswith(" ") else message == sentence


def test_mistakes_of_all_kinds_are_told_together_in_the_order_of_the_file(load: Load) -> None:
    with pytest.raises(UserError) as refused:
        load(
            {
                "model": {"name": "toi"},
                "rewards": {"bright": {"scal": 1, "weight": 0}, "other": {"name": "brigt"}},
                "prompts": {"train": "nowhere.txt"},
                "sampling": {"stepps": 1, "dynamics": {"num_sde_steps": 9}},
                "training": {"iterations": 0, "updates": 17},
                "trainning": {},
            }
        )
    places = [line.removeprefix("config.yaml: ").split(" ")[0].rstrip(":") for line in str(refused.value).splitlines()]
    assert places == [
        "model",
        "rewards.other",
        "rewards.bright.scal",
        "prompts.train",
        "sampling.stepps",
        "sampling.dynamics.num_sde_steps",
        "training.iterations",
        "training.updates",
        "trainning",
    ]


def test_a_check_that_needs_what_is_wrong_says_nothing(load: Load) -> None:
    with pytest.raises(UserError) as refused:  # of nine steps, 8 would be one
        load({"sampling": {"steps": "nine", "dynamics": {"sde_steps": [8]}}})
    assert str(refused.value) == "config.yaml: sampling.steps: got 'nine'; give a whole number from 1 to 1000"
    load({"sampling": {"steps": 9, "dynamics": {"sde_steps": [8], "num_sde_steps": 1}}})


def test_what_was_wrong_in_one_config_leaves_the_defaults_of_the_next(load: Load) -> None:
    for _ in range(2):
        with pytest.raises(UserError):
            load({"training": {"optimizer": {"name": "lion", "lr": "x", "betas": 3}}, "advantages": {"clip": -1}})
        made = load()
        assert (made.advantages.clip, made.training.optimizer.lr) == (5.0, 0.02)


def test_mistakes_in_two_rewards_are_two(load: Load) -> None:
    with pytest.raises(UserError) as refused:
        load({"rewards": {"bright": {"scal": 1}, "other": {"name": "bright", "scal": 1}}})
    assert str(refused.value) == (
        "config.yaml: rewards.bright.scal: unknown key; did you mean 'scale'?\n"
        "config.yaml: rewards.other.scal: unknown key; did you mean 'scale'?"
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": {"name": "toi"}}, r"config\.yaml: model: no model called 'toi'; did you mean 'toy'\?"),
        ({"algorithm": "scor"}, r"config\.yaml: algorithm: no algorithm called 'scor'; did you mean 'score'\?"),
        ({"rewards": {"a": "bryght"}}, r"config\.yaml: rewards\.a: no reward called 'bryght'; did you mean 'bright'\?"),
        (
            {"evaluation": {"rewards": {"a": "zzz"}}},
            r"config\.yaml: evaluation\.rewards\.a: no reward called 'zzz'; there is bright(; FLOWFACTORY_PLUGINS .*)?",
        ),
        (
            {"sampling": {"dynamics": {"name": "flow_sde"}}},
            r"config\.yaml: sampling\.dynamics: no dynamics called 'flow_sde'; did you mean 'flow-sde'\?",
        ),
        (
            {"output": {"trackers": ["tensorbord"]}},
            r"config\.yaml: output\.trackers\.0: no tracker called 'tensorbord'; did you mean 'tensorboard'\?",
        ),
        ({"rewards": {"a": {"weight": 1.0}}}, r"config\.yaml: rewards\.a: say which reward with 'name'"),
        ({"rewards": {"a": 3}}, r"config\.yaml: rewards\.a: got 3; give the name of a reward, or a mapping with 'name'"),
    ],
)
def test_an_unknown_component_is_refused_with_the_nearest(load: Load, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}$"):
        load(change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"training": {"iterations": "many"}},
            r"config\.yaml: training\.iterations: got 'many'; give a whole number from 1 to 10000000",
        ),
        ({"training": 5}, r"config\.yaml: training: got 5; give a mapping with iterations, updates, .*"),
        ({"model": None}, r"config\.yaml: model: this key is missing; give the name of a component, or a mapping with 'name'"),
        ({"rewards": None}, r"config\.yaml: rewards: this key is missing; give a mapping from labels to rewards"),
        ({"rewards": {"bright": None}}, r"config\.yaml: rewards: got {}; give a mapping from labels to rewards"),
        (
            {"sampling": {"group_size": 1}},
            r"config\.yaml: sampling\.group_size: got 1; give a whole number from 2 to 10000",
        ),
        (
            {"training": {"updates": 17}},
            r"config\.yaml: training\.updates \(17\) is more than the 16 pictures there are; set it .*",
        ),
        ({"rewards": {"bright": {"weight": 0}}}, r"config\.yaml: every reward has weight 0: nothing would be learned"),
        ({"sampling": {"dynamics": {"name": "ode"}}}, r"config\.yaml: algorithm score needs stochastic dynamics"),
        (
            {"sampling": {"dynamics": {"sde_steps": [4]}}},
            r"config\.yaml: .*distinct steps from 0 to 3 \(sampling\.steps is 4\)",
        ),
        ({"sampling": {"dynamics": {"sde_steps": [1, 1]}}}, r"config\.yaml: .*distinct steps from 0 to 3.*"),
        ({"sampling": {"dynamics": {"sde_steps": []}}}, r"config\.yaml: .*distinct steps from 0 to 3.*"),
        (
            {"sampling": {"dynamics": {"num_sde_steps": 4}}},
            r"config\.yaml: sampling\.dynamics\.num_sde_steps \(4\) is more than the 3 candidates",
        ),
        (
            {"sampling": {"steps": 1, "dynamics": {"name": "flow-sde"}}},
            r"config\.yaml: sampling\.steps: flow-sde needs at least 2.*",
        ),
        ({"seed": -1}, r"config\.yaml: seed: got -1; give a whole number of at least 0 and below 9223372036854775808"),
        ({"prompts": {"train": "nowhere.txt"}}, r"config\.yaml: prompts\.train: no file /.*/nowhere\.txt"),
        ({"plugins": "toy.py"}, r"config\.yaml: plugins: got 'toy\.py'; give a list of files; did you mean \[toy\.py\]\?"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_sentence(load: Load, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}$"):
        load(change)


def test_plugins_that_are_no_list_are_refused_beside_the_command_lines_too(config_file: ConfigFile, toy: Path) -> None:
    for value in ("toy.py", 5):
        with pytest.raises(UserError, match=r"^config\.yaml: plugins: got .*; give a list of files"):
            loading.load(config_file({"plugins": value}), plugins=[toy])


def test_set_takes_numbers_lists_and_mappings(load: Load) -> None:
    made = load(
        sets=[
            "training.optimizer.lr=1e-4",
            "sampling.size=[8, 16]",
            "rewards={glow: {name: bright, scale: 2.5}, other: bright}",
            "evaluation.rewards.held.name=bright",
            "evaluation.rewards.held.scale=3",
            "prompts.heldout=null",
        ]
    )
    assert made.training.optimizer.lr == 1e-4
    assert made.sampling.size == (8, 16)
    assert list(made.rewards) == ["glow", "other"]
    assert made.rewards["glow"].model_dump()["scale"] == 2.5
    assert made.evaluation.rewards["held"].model_dump()["scale"] == 3.0
    assert made.prompts.heldout is None


def test_set_opens_the_shorthand_of_a_component() -> None:
    raw = {"model": "toy", "algorithm": "score", "rewards": {"a": "bright"}, "sampling": {"dynamics": "flow-sde"}}
    for assignment in ("model.p=2", "algorithm.pull=3", "rewards.a.scale=4", "sampling.dynamics.noise_level=1"):
        raw = apply_override(raw, assignment)
    assert raw == {
        "model": {"name": "toy", "p": 2},
        "algorithm": {"name": "score", "pull": 3},
        "rewards": {"a": {"name": "bright", "scale": 4}},
        "sampling": {"dynamics": {"name": "flow-sde", "noise_level": 1}},
    }


@pytest.mark.parametrize("section", ["sampling", "advantages", "training", "evaluation", "distributed", "output", "plugins"])
def test_a_section_that_is_left_empty_is_as_left_out(section: str, config_file: ConfigFile) -> None:
    path = config_file()
    raw = yaml.safe_load(path.read_text())
    raw = {key: value for key, value in raw.items() if key != section}
    texts = [yaml.safe_dump(raw), f"{yaml.safe_dump(raw)}\n{section}:\n  # all of it: commented out\n"]
    read = []
    for text in texts:
        path.write_text(text)
        try:
            read.append(dump(loading.load(path)))
        except UserError as error:
            read.append(str(error))
    assert read[0] == read[1]


@pytest.mark.parametrize(
    ("section", "key"), [("evaluation", "rewards"), ("output", "trackers"), ("prompts", "train"), ("training", "iterations")]
)
def test_lists_and_mappings_may_be_left_empty_and_values_may_not(section: str, key: str, load: Load) -> None:
    if key in ("rewards", "trackers"):
        assert dump(load(sets=[f"{section}.{key}="])) == dump(load())
    else:
        with pytest.raises(UserError, match=rf"^--set {section}\.{key}: got null; give a "):
            load(sets=[f"{section}.{key}="])


def test_set_opens_a_name_alone_wherever_it_stands(tmp_path: Path) -> None:
    raw = {"evaluation": {"ema": "power"}, "algorithm": {"name": "score", "timesteps": "logit-normal", "old": "constant"}}
    for assignment in ("evaluation.ema.decay=0.9", "algorithm.timesteps.std=2", "algorithm.old.decay=0.5"):
        raw = apply_override(raw, assignment)
    assert raw["evaluation"] == {"ema": {"name": "power", "decay": 0.9}}
    assert raw["algorithm"]["timesteps"] == {"name": "logit-normal", "std": 2}
    assert raw["algorithm"]["old"] == {"name": "constant", "decay": 0.5}
    assert apply_override({"model": {"name": "toy", "train": "full"}}, "model.train.lora.rank=4") == {
        "model": {"name": "toy", "train": {"lora": {"rank": 4}}}
    }


def test_set_leaves_what_it_is_given_as_it_was() -> None:
    raw = {"training": {"optimizer": {"lr": 1}}}
    assert apply_override(raw, "training.optimizer.lr=2") == {"training": {"optimizer": {"lr": 2}}}
    assert raw == {"training": {"optimizer": {"lr": 1}}}


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("seed", r"^--set seed: write it as a\.b=value$"),
        ("=3", r"^--set =3: write it as a\.b=value$"),
        ("plugins.0=x.py", r"^--set plugins\.0=x\.py: plugins is a list; set it as a whole$"),
        ("seed=[1", r"^--set seed line 1: [^\n]+$"),
        ("sampling.stepps=3", r"^--set sampling\.stepps: unknown key; did you mean 'steps'\?$"),
        ("algorithm.name=scor", r"^--set algorithm: no algorithm called 'scor'; did you mean 'score'\?$"),
        ("training.iterations=0", r"^--set training\.iterations: got 0; give a whole number from 1 to 10000000$"),
    ],
)
def test_a_mistake_on_the_command_line_is_blamed_on_it(load: Load, assignment: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load(sets=[assignment])


@pytest.mark.parametrize(
    ("given", "alpha"),
    [({}, 32), ({"rank": 4}, 4), ({"rank": 4.0}, 4), ({"rank": 4, "alpha": 10}, 10), ({"alpha": 64}, 64)],
)
def test_alpha_is_the_rank_when_left_out(load: Load, given: dict[str, float], alpha: float) -> None:
    made = load({"model": {"name": "net", "train": {"lora": given}}})
    assert made.model.model_dump()["train"]["lora"]["alpha"] == alpha
    assert yaml.safe_load(dump(made))["model"]["train"]["lora"]["alpha"] == alpha


def test_the_resolved_config_reads_back_to_the_same(load: Load, tmp_path: Path) -> None:
    made = load(
        {
            "model": {"name": "net", "train": {"lora": {"rank": 3, "targets": ["0"]}}},
            "rewards": {"a": "bright", "b": {"name": "bright", "weight": 0.5}},
            "evaluation": {"rewards": {"c": {"name": "bright", "scale": 2}}, "size": [8, 8]},
            "output": {"trackers": ["tensorboard"]},
            "prompts": {"negative": "ugly: 'très' \"laid\""},
            "training": {"optimizer": {"lr": 1e-7}},
        }
    )
    text = dump(made)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/config.yaml").write_text(text)
    again = loading.load(tmp_path / "elsewhere/config.yaml")
    assert again.model_dump(mode="json") == made.model_dump(mode="json")
    assert dump(again) == text
    resolved = yaml.safe_load(text)
    assert list(resolved["rewards"]["b"])[:2] == ["name", "weight"]
    assert resolved["sampling"]["dynamics"]["noise_level"] == 0.7  # defaults are written out


def test_paths_in_a_file_are_relative_to_the_file(config_file: ConfigFile, toy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep/er"
    folder.mkdir(parents=True)
    config_file({"output": {"dir": "../runs"}, "plugins": ["toy.py"]}).rename(folder / "config.yaml")
    (folder / "train.txt").write_text("red")
    (folder / "heldout.txt").write_text("blue")
    (folder / "toy.py").write_text(toy.read_text())
    made = loading.load(folder / "config.yaml")
    assert made.prompts.train == folder / "train.txt"
    assert made.output.dir == tmp_path / "deep/runs"
    assert made.plugins == (folder / "toy.py",)


def test_the_run_directory_is_named_for_the_config_where_the_command_is_given(config_file: ConfigFile, tmp_path: Path) -> None:
    assert loading.load(config_file(name="mine.yaml")).output.dir == tmp_path / "runs/mine"
    assert loading.load(config_file(), out=Path("else/where")).output.dir == tmp_path / "else/where"


def test_a_plugin_of_the_command_line_joins_those_of_the_file(config_file: ConfigFile, toy: Path) -> None:
    made = loading.load(config_file({"plugins": None}), plugins=[toy])
    assert made.plugins == (toy,)


def test_a_file_that_is_not_there_is_refused_with_the_examples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no file nothing\.yaml, and no example of that name; none is installed$"):
        loading.load("nothing.yaml")
    (tmp_path / "plugin.py").write_text(
        "from flowfactory import hookimpl\n@hookimpl\ndef register_components(register):\n"
        "    register('example', 'demo', 'demo.yaml')\n"
    )
    with pytest.raises(UserError, match=r"^no file demos, and no example of that name; did you mean 'demo'\?$"):
        loading.load("demos", plugins=[tmp_path / "plugin.py"])


def test_an_example_runs_by_its_name(config_file: ConfigFile, toy: Path, tmp_path: Path) -> None:
    path = config_file({"plugins": None}, name="demo.yaml")
    (tmp_path / "plugin.py").write_text(
        "from flowfactory import hookimpl\n@hookimpl\ndef register_components(register):\n"
        f"    register('example', 'demonstration', {str(path)!r})\n"
    )
    made = loading.load("demonstration", plugins=[tmp_path / "plugin.py", toy])
    assert made.prompts.train == tmp_path / "train.txt"


@pytest.mark.parametrize("line", ["scor", "score"])
def test_dry_run_checks_without_making_anything(
    line: str, config_file: ConfigFile, invoke: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, err = invoke("run", config_file({"algorithm": line}), "--dry-run")
    if line == "score":
        assert (code, err) == (0, "")
        shared = {"guidance": None, "guidance_gradient": "exact"}
        assert yaml.safe_load(out)["algorithm"] == {"name": "score", **shared, "pull": 0.0, "clip_range": 0.1}
    else:
        assert (code, out) == (2, "")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        (
            {"sampling": {"group_sise": 4}},
            [],
            "error: config.yaml: sampling.group_sise: unknown key; did you mean 'group_size'?\n",
        ),
        (
            {},
            ["--set", "rewards.bright.name=brigt"],
            "error: --set rewards.bright: no reward called 'brigt'; did you mean 'bright'?\n",
        ),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    config_file: ConfigFile, command: Command, changes: dict[str, Any], arguments: list[str], sentence: str
) -> None:
    done = command("run", config_file(changes), *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


def test_the_schema_lists_every_component_and_its_options(toy: Path, invoke: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = invoke("schema", "--plugin", toy)
    assert (code, err) == (0, "")
    schema = json.loads(out)
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"model", "algorithm", "prompts"}
    definitions = schema["$defs"]
    references = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            references.update([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(schema)
    assert references
    assert {reference.removeprefix("#/$defs/") for reference in references} <= set(definitions)
    assert {"name", "p", "q", "train", "quantize"} == set(definitions["TwoParameterConfig"]["properties"])
    assert definitions["BrightConfig"]["properties"]["weight"]["type"] == "number"
    assert definitions["BrightConfig"]["properties"]["scale"]["description"] == "what the score is multiplied by"
    assert definitions["FlowSDEConfig"]["properties"]["noise_level"]["exclusiveMinimum"] == 0


def test_the_schema_leaves_out_what_cannot_be_loaded(tmp_path: Path, toy: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from flowfactory import hookimpl\n@hookimpl\ndef register_components(register):\n"
        "    register('reward', 'gone', 'no_such_module:Config')\n"
    )
    text = json.dumps(schema_type(discover([tmp_path / "broken.py", toy])).model_json_schema())
    assert "BrightConfig" in text
    assert "gone" not in text


@pytest.mark.parametrize(("kind", "option"), [("reward", "name"), ("reward", "weight"), ("algorithm", "name")])
def test_an_option_that_is_flowfactorys_own_is_refused(kind: str, option: str, tmp_path: Path, load: Load) -> None:
    base = {"reward": "ComponentConfig", "algorithm": "AlgorithmConfig"}[kind]
    (tmp_path / "clash.py").write_text(
        f"from flowfactory import {base}, hookimpl\nclass C({base}):\n    {option}: float = 1.0\n"
        "    def build(self, label): ...\n@hookimpl\ndef register_components(register):\n"
        f"    register('{kind}', 'clash', C)\n"
    )
    section = {"rewards": {"bright": {"name": "clash"}}} if kind == "reward" else {"algorithm": {"name": "clash"}}
    plugins = [str(Path(__file__).parents[1] / "toy_plugin.py"), str(tmp_path / "clash.py")]
    with pytest.raises(UserError, match=f"{kind} 'clash' has an option '{option}', which is flowfactory's own; rename it"):
        load({**section, "plugins": plugins})


def test_a_component_without_build_is_refused_where_it_is_written() -> None:
    class Unfinished(ComponentConfig):
        kept: ClassVar[int] = 1

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()  # type: ignore[abstract]


def test_a_config_cannot_be_changed(load: Load) -> None:
    made = load()
    with pytest.raises(ValueError, match="frozen"):
        made.seed = 3  # type: ignore[misc]


def test_a_label_that_would_split_the_name_of_a_metric_is_refused(config_file: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="the label 'a/b' may have letters"):
        loading.load(config_file({"rewards": {"a/b": {"name": "bright"}}}))


def test_an_algorithm_that_compares_a_groups_members_keeps_them_together(
    load: Load, matching: Callable[..., dict[str, Any]]
) -> None:
    load({**matching(), "training": {"updates": 4}})  # there are four groups
    with pytest.raises(UserError) as refused:
        load({**matching(), "training": {"updates": 5}})
    assert str(refused.value) == (
        "config.yaml: training.updates (5) is more than the 4 groups there are, and this algorithm compares the members of a "
        "group; set it lower, or epochs higher"
    )
    load({"training": {"updates": 5}})  # the others may split a group


def test_an_algorithm_that_says_who_draws_is_not_told_by_the_config(
    load: Load, matching: Callable[..., dict[str, Any]]
) -> None:
    average = {"name": "constant"}
    with pytest.raises(UserError) as refused:
        load({**matching(), "sampling": {"ema": average}})
    assert str(refused.value) == ("config.yaml: sampling.ema: this algorithm chooses itself which weights draw; leave it out")
    load({**matching(), "evaluation": {"ema": average}})
    load({"sampling": {"ema": average}})
