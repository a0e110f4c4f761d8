"""Teachers over the base of a student: what they answer, what they leave as it was, and which of them are refused."""

from __future__ import annotations

import re
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

from flowfactory import RunError, UserError
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
