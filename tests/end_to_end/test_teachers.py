"""Teachers over the base of a student: what they answer, what they leave as it was, and which of them are refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_flux
import torch
from families import nudge, open_bench
from safetensors.torch import load_file, save_file
from saved import stored
from torch import Tensor
from typer.testing import CliRunner

from flowfactory import RunError, UserError, testing
from flowfactory.cli.main import app
from flowfactory.config.loading import validate
from flowfactory.lora_targets import adaptable_layers
from flowfactory.policy import blocks
from flowfactory.runs.checkpoints.stored_modules import write_adapters
from flowfactory.testing import Bench
from flowfactory.types import Step

LORA = {"rank": 3, "alpha": 7.5}
FEW = {"rank": 2, "targets": ["to_q", "to_out.0"]}
Make = Callable[..., Bench]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux.flux1(tmp_path_factory.mktemp("flux1"))


@pytest.fixture
def make(checkpoint: Path, tmp_path: Path) -> Make:
    (tmp_path / "prompts.txt").write_text("a cat\n")

    def made(train: Any = None, precision: torch.dtype = torch.float32, **options: Any) -> Bench:
        chosen = {"train": train if isinstance(train, str) else {"lora": dict(train or LORA)}, **options}
        config = validate(
            {
                "model": {"name": "flux1", "path": str(checkpoint), "max_sequence_length": 16, **chosen},
                "algorithm": "grpo",
                "rewards": {"small": "jpeg-size"},
                "prompts": {"train": str(tmp_path / "prompts.txt")},
                "sampling": {"size": [32, 32], "dynamics": "flow-sde"},
            }
        ).model
        return open_bench(config, tmp_path / "cache", ["a cat", "a dog"], (32, 32), guidance=3.5, precision=precision)

    return made


def save_adapters(made: Bench, folder: Path, scale: float = 0.3) -> Path:
    """The adapters of a run whose weights training moved."""
    nudge(made, scale)
    folder.mkdir()
    with stored(made.policy) as modules:
        write_adapters(modules, folder)
    return folder


@pytest.fixture
def folder(make: Make, tmp_path: Path) -> Path:
    return save_adapters(make(), tmp_path / "teacher")


def at(made: Bench, seed: int = 1) -> Step:
    shape = made.draw(2).latents.shape
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return Step(latents, torch.tensor([0.8, 0.3]), made.conditions, 3.5, made.plan.dynamics)


def answer(made: Bench, step: Step) -> Tensor:
    with torch.no_grad():
        return made.policy.evaluate(step).velocity


def weights(made: Bench) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in made.trainable.modules["transformer"].named_parameters()}


STUDENTS: dict[str, Any] = {
    "another rank and other layers": FEW,
    "the same layers": LORA,
    "all weights": "full",
}


@pytest.mark.parametrize("train", STUDENTS.values(), ids=STUDENTS)
def test_a_teacher_answers_as_a_run_that_starts_from_its_adapters_and_leaves_all_as_it_was(
    make: Make, folder: Path, train: Any
) -> None:
    student, teacher = make(train), make({"from": str(folder)})
    student.policy.teachers.read({"wise": folder})
    nudge(student, 0.2)
    step, before = at(student), weights(student)
    own, wanted = answer(student, step), answer(teacher, step)
    assert (own - wanted).abs().max() > 1e-2
    for _ in range(2):
        torch.testing.assert_close(student.policy.evaluate_teachers(["wise"] * 2, step), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(answer(student, step), own)
    assert before.keys() == weights(student).keys()
    assert all(torch.equal(before[name], weight) for name, weight in weights(student).items())
    hooks = [len(layer._forward_hooks) for layer in student.trainable.modules["transformer"].modules()]
    assert not sum(hooks)
    assert all(p.requires_grad for p in student.policy.parameters.values())


def test_each_sample_is_answered_by_its_own_teacher(make: Make, tmp_path: Path) -> None:
    folders = {name: save_adapters(make(options), tmp_path / name, 0.2) for name, options in (("a", LORA), ("b", FEW))}
    student = make()
    student.policy.teachers.read(folders)
    step = at(student)
    a, b = (answer(make({"from": str(folder)}), step) for folder in folders.values())
    found = student.policy.evaluate_teachers(["b", "a"], step)
    torch.testing.assert_close(found, torch.stack([b[0], a[1]]), rtol=1e-5, atol=1e-5)
    with pytest.raises(RunError, match="no teacher called 'c' was read; read it when the run starts"):
        student.policy.evaluate_teachers(["c", "a"], step)


def test_adapters_inside_the_base_of_the_student_are_none_of_its_teachers(make: Make, folder: Path, tmp_path: Path) -> None:
    base = save_adapters(make(FEW), tmp_path / "base")
    student = make({"from": str(base), "as": "base", "rank": 2})
    student.policy.teachers.read({"wise": folder})
    step = at(student)
    wanted = answer(make({"from": str(folder)}), step)
    torch.testing.assert_close(student.policy.evaluate_teachers(["wise"] * 2, step), wanted, rtol=2e-5, atol=2e-5)


def test_teachers_add_to_quantised_layers(make: Make, folder: Path) -> None:
    student, teacher = make(FEW, quantize="int8"), make({"from": str(folder)}, quantize="int8")
    student.policy.teachers.read({"wise": folder})
    step = at(student)
    torch.testing.assert_close(
        student.policy.evaluate_teachers(["wise"] * 2, step), answer(teacher, step), rtol=1e-5, atol=1e-5
    )


def test_a_teacher_is_asked_in_the_precision_of_the_forward(make: Make, folder: Path) -> None:
    student, teacher = make(FEW, torch.bfloat16), make({"from": str(folder)}, torch.bfloat16)
    student.policy.teachers.read({"wise": folder})
    step = at(student)
    found, wanted = student.policy.evaluate_teachers(["wise"] * 2, step), answer(teacher, step)
    assert (found - wanted).norm() / wanted.norm() < 0.02


@pytest.mark.filterwarnings("ignore")  # of its own warnings torch hides some only as they are shown
def test_compiled_blocks_run_as_they_are_once_there_are_teachers(make: Make, folder: Path) -> None:
    student = make()
    (module,) = student.trainable.modules.values()
    undo = blocks.compile_blocks(module, student.trainable.blocks, lenient=True)
    student.policy._transformers._compiled.append(undo)  # as training.compile: auto does on CUDA
    compiled = blocks.find_blocks(module, student.trainable.blocks)[0].forward
    student.policy.teachers.read({"wise": folder})
    assert blocks.find_blocks(module, student.trainable.blocks)[0].forward.__func__ is not compiled.__func__
    assert not student.policy.stop_compiling()


def changed(folder: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Path:
    file = folder / "pytorch_lora_weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file)
    return folder


def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], Mapping[str, Tensor]]:
    return lambda found: {name.replace(old, new): tensor for name, tensor in found.items()}


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], Mapping[str, Tensor]], str]] = {
    "a key of no layer": (rename("to_q", "to_query"), r"to_query\.lora_\w\.weight is of no layer of transformer; did you mean"),
    "another width": (
        lambda found: {name: t[:, :-4] if ".lora_A." in name else t for name, t in found.items()},
        r"is for \[\d+, 28\] at \S+, where this model has \[\d+, 32\]; it is of another model",
    ),
}


@pytest.mark.parametrize(("change", "told"), REFUSED.values(), ids=REFUSED)
def test_a_file_of_another_model_is_refused_by_name(make: Make, folder: Path, change: Any, told: str) -> None:
    with pytest.raises(UserError, match=rf"^algorithm\.teachers\.wise: .*{told}"):
        make().policy.teachers.read({"wise": changed(folder, change)})


def test_adapters_on_what_is_no_linear_layer_are_refused(make: Make, tmp_path: Path) -> None:
    student = make()
    file = tmp_path / "conv.safetensors"
    save_file({"x.lora_A.weight": torch.zeros(1, 3, 2, 2), "x.lora_B.weight": torch.zeros(4, 1, 1, 1)}, file)
    student.policy._transformers.layers["transformer"]["x"] = torch.nn.Conv2d(3, 4, 2)
    with pytest.raises(UserError, match=re.escape(f"{file}: x is no linear layer, and a teacher's adapters are on such alone")):
        student.policy.teachers.read({"wise": file})
    assert "x" not in adaptable_layers(student.trainable.modules["transformer"])


MODELS: dict[str, dict[str, Any]] = {
    "flux1": {"name": "flux1", "max_sequence_length": 16},
    "sd3": {"name": "tiny"},  # the bundled pipeline is one of Stable Diffusion 3
}


@pytest.fixture
def settle(checkpoint: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A config of a run in ``tmp_path/folder``."""
    (tmp_path / "train.txt").write_text("a small red circle\na large blue square\n")

    def settled(model: str, algorithm: Any, folder: str, train: Any = None, **sections: Any) -> dict[str, Any]:
        path = {"path": str(checkpoint)} if model == "flux1" else {}
        raw: dict[str, Any] = {
            "model": MODELS[model] | path | {"train": train or {"lora": LORA}},
            "algorithm": algorithm,
            "rewards": {"small": "jpeg-size"},
            "prompts": {"train": str(tmp_path / "train.txt"), "heldout": str(tmp_path / "train.txt")},
            "sampling": {"groups": 2, "group_size": 2, "size": [32, 32], "steps": 3, "dynamics": "ode"},
            "training": {"iterations": 2, "optimizer": {"lr": 3e-3}},
            "output": {"dir": str(tmp_path / folder)},
            "device": "cpu",
        }
        for name, section in sections.items():
            raw[name] = {**raw.get(name, {}), **section}
        return raw

    return settled


def taught(teacher: Path, **options: Any) -> dict[str, Any]:
    return {"name": "opd", "teachers": {"wise": str(teacher)}, **options}


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("model", MODELS)
def test_the_student_has_nothing_to_learn_from_its_own_adapters(
    settle: Callable[..., Any], tmp_path: Path, model: str, scaled: bool
) -> None:
    teacher = testing.train(settle(model, "nft", "teacher")).folder
    algorithm = taught(teacher, self_normalize=scaled)
    started = testing.begin(settle(model, algorithm, "same", {"lora": {"from": str(teacher)}}))
    run = started.draw(0)
    for loss in run.losses():
        assert not loss.values.any()
        loss.values.sum().backward()
    gradients = [p.grad for p in started.policy.parameters.values()]
    assert not any(gradient.any() for gradient in gradients if gradient is not None)
    with pytest.raises(RunError, match="every gradient is zero, so nothing would train"):
        testing.train(settle(model, algorithm, "same", {"lora": {"from": str(teacher)}}))


@pytest.mark.parametrize("train", [{"lora": {"rank": 2}}, "full"], ids=["adapters", "all weights"])
@pytest.mark.parametrize("model", MODELS)
def test_a_student_comes_nearer_resumes_bit_for_bit_and_is_drawn_from(
    settle: Callable[..., Any], tmp_path: Path, model: str, train: Any
) -> None:
    teacher = testing.train(settle(model, "nft", "teacher", training={"optimizer": {"lr": 3e-2}})).folder
    optimizer = {"lr": 1e-3 if train == "full" else 1e-2}
    sections: dict[str, Any] = {"sampling": {"group_size": 1, "groups": 6}, "training": {"optimizer": optimizer}}
    student = testing.train(settle(model, taught(teacher), "student", train, **sections), iterations=4)
    distances = [record["teacher_distance"] for record in student.records]
    assert distances[-1] < distances[0]
    assert "reward/small/mean" not in student.records[-1]
    assert "eval/small/mean" in student.records[-1]
    stopped = settle(model, taught(teacher), "stopped", train, **sections)
    testing.train(stopped, iterations=2)
    resumed = testing.train(stopped, resume=True, iterations=4)
    wanted, found = student.weights(4), resumed.weights(4)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], weight) for name, weight in found.items())
    shutil.rmtree(teacher)
    for command in (
        ["export", str(student.folder), str(tmp_path / "out")],
        ["sample", str(student.folder), "a small red circle"],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output


def test_a_resumed_run_wants_the_teacher_that_it_had(settle: Callable[..., Any], tmp_path: Path) -> None:
    teacher = testing.train(settle("flux1", "nft", "teacher")).folder
    raw = settle("flux1", taught(teacher / "checkpoints" / "000002"), "student")
    testing.train(raw, iterations=1)
    changed(teacher / "checkpoints" / "000002", lambda found: {name: 2 * tensor for name, tensor in found.items()})
    with pytest.raises(UserError, match=r"algorithm\.teachers\.wise: its content has changed since"):
        testing.train(raw, resume=True)


def test_all_weights_of_a_run_teach_what_trains_whole_alone(settle: Callable[..., Any], tmp_path: Path) -> None:
    teacher = testing.train(settle("flux1", "nft", "teacher", "full")).folder
    with pytest.raises(UserError, match=r"algorithm\.teachers\.wise: .*/000002 is of a run that trained all weights"):
        testing.begin(settle("flux1", taught(teacher), "student"))
    started = testing.begin(settle("flux1", taught(teacher), "student", "full"))
    before = {name: p.detach().clone() for name, p in started.policy.parameters.items()}
    run = started.draw(0)
    assert all(loss.values.detach().all() for loss in run.losses())
    assert all(torch.equal(before[name], p) for name, p in started.policy.parameters.items())


@pytest.mark.parametrize(
    "sampling", [{"feature_cache": {"name": "first-block", "threshold": 0.5}}, {"weights_as": "int8"}, {"dynamics": "cps"}]
)
def test_states_that_shortcuts_drew_are_learned_at_too(settle: Callable[..., Any], tmp_path: Path, sampling: Any) -> None:
    teacher = testing.train(settle("flux1", "nft", "teacher")).folder
    trained = testing.train(settle("flux1", taught(teacher), "student", sampling=sampling))
    assert "preflight: 2 recorded steps are places to learn at: no log-density is compared" in trained.said


def test_what_a_run_with_teachers_takes_is_known_before(settle: Callable[..., Any], tmp_path: Path) -> None:
    for train in ({"lora": LORA}, "full"):
        teacher = testing.train(settle("flux1", "nft", f"teacher-{train == 'full'}", train)).folder
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps(settle("flux1", taught(teacher), "student", train)))
        done = CliRunner().invoke(app, ["estimate", str(config)])
        assert done.exit_code == 0, done.output
