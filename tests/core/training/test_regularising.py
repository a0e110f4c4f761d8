"""The loss on records that joins an algorithm's: the gradient is that of the sum, whatever the pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from record_files import write_records

from flowfactory import testing
from flowfactory.config.loading import validate
from flowfactory.flow import noised_micro_batches
from flowfactory.rl import squared_error
from flowfactory.testing.run_suite import cache_of
from flowfactory.training import regularising
from flowfactory.training.iteration import collect, update
from flowfactory.training.metrics import Timer, UpdateMetrics
from flowfactory.training.regularising import TIMES, Regularising
from flowfactory.training.setup import Run, prepare_run


def settings(folder: Path, weight: float | None = 0.5, **training: Any) -> dict[str, Any]:
    file = write_records(folder)
    file.write_text(file.read_text() + '\n{"prompt": "words alone"}')
    told = {} if weight is None else {"regularise": {"sft": weight}}
    return testing.settings(
        folder,
        "policy-gradient",
        prompts={"train": str(file)},
        sampling={"dynamics": "flow-sde"},
        training={"updates": 2, **training, **told},
    )


def start(raw: dict[str, Any]) -> Run:
    with cache_of(raw):
        run = prepare_run(validate(raw))
    run.assembly.hooks.run_started(run.info, run.policy)
    return run


def gradients(run: Run, monkeypatch: pytest.MonkeyPatch, weight: float | None) -> list[torch.Tensor]:
    """The gradient of each optimizer step of the first iteration, none of which moves anything."""
    seen = []

    def note() -> None:
        seen.append(torch.stack([p.grad.clone() for p in run.policy.parameters.values() if p.grad is not None]))
        for p in run.policy.parameters.values():
            p.grad = None

    monkeypatch.setattr(run.learner, "apply", note)
    rollouts = collect(run, 0, Timer(run.policy.device))
    joining = Regularising.of(run, 0)
    update(run, rollouts, 0, UpdateMetrics(), joining)
    return seen


def test_the_gradient_is_the_algorithms_and_the_weight_times_that_of_the_mean_on_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = {"max_grad_norm": 1e9, "batch_size": 3}
    alone = gradients(start(settings(tmp_path, None, **loose)), monkeypatch, None)
    run = start(settings(tmp_path, 0.5, **loose))
    both = gradients(run, monkeypatch, 0.5)
    joining = Regularising.of(run, 0)
    assert joining is not None
    experience = joining.records.experience
    assert len(experience) == 2
    weights = list(run.policy.parameters.values())
    for step, (own, found) in enumerate(zip(alone, both, strict=True)):
        rows = list(regularising_rows(run, joining))[step]
        (at,) = noised_micro_batches(experience.rows(rows), TIMES)
        error = squared_error(run.policy.evaluate(at.step).velocity, at.target).mean()
        expected = own + 0.5 * torch.stack(torch.autograd.grad(error, weights))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def regularising_rows(run: Run, joining: Regularising) -> Any:
    from flowfactory.training.update import split_updates

    return split_updates(joining.groups, run.config.training.updates, run.config.seed, 0, 0)


def test_records_are_the_target_of_the_velocity_without_guidance(tmp_path: Path) -> None:
    raw = settings(tmp_path)
    run = start(raw | {"model": {"name": "guided"}, "sampling": raw["sampling"] | {"guidance": 3.0}})
    joining = Regularising.of(run, 0)
    assert joining is not None
    plan = joining.records.experience.plan
    assert (plan.guidance, plan.training_guidance) == (1.0, None)
    assert joining.records.experience.conditions.negative is None
    assert collect(run, 0, Timer(run.policy.device)).experience.plan.guidance == 3.0


def test_prompts_without_a_target_take_no_part_and_every_target_has_its_turn(tmp_path: Path) -> None:
    run = start(settings(tmp_path))
    drawn = [prompt.index for i in range(5) for prompt in regularising.regularising_prompts(run.targets, run.config, i)]
    assert sorted(drawn) == sorted([*range(5)] * 2)


def test_runs_tell_the_loss_on_records_and_resume_to_the_bit(tmp_path: Path) -> None:
    trained = testing.check_resumes_bit_for_bit(settings(tmp_path))
    assert all(record["sft"] > 0 for record in trained.records)


def test_what_is_encoded_ahead_has_the_records_too(tmp_path: Path) -> None:
    raw = settings(tmp_path)
    whole = testing.train(raw)
    few = raw | {"prompts": raw["prompts"] | {"encode_ahead": 2}}
    ahead = testing.train(few, out=tmp_path / "ahead")
    assert [record["sft"] for record in ahead.records] == [record["sft"] for record in whole.records]


def test_without_any_target_it_is_told_at_the_start(tmp_path: Path) -> None:
    raw = settings(tmp_path)
    Path(raw["prompts"]["train"]).write_text('{"prompt": "a"}')
    with pytest.raises(Exception, match="none of the prompts brings a 'target'"):
        start(raw)
