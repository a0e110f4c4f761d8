"""Supervised fine-tuning: its loss by hand, its times, and runs of it, which draw nothing and compute no reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from record_files import GREYS, write_records
from typer.testing import CliRunner

from flowfactory import testing
from flowfactory.cli.main import app
from flowfactory.config.loading import validate
from flowfactory.errors import UserError
from flowfactory.flow import LogitNormal, Uniform, generator
from flowfactory.flow.timesteps import schedule_shift, shift_sigma
from flowfactory.testing import ODE, NoisedByHand
from flowfactory.training.setup import prepare_run
from flowfactory_sft.sft import SFTConfig

START, LATER = (0.3, -0.2), (0.36, -0.25)


def settings(folder: Path, **training: Any) -> dict[str, Any]:
    """Three iterations of two optimizer steps on the records, without a single reward."""
    raw = testing.settings(folder, "sft", prompts={"train": str(write_records(folder))}, training={"updates": 2, **training})
    return {**raw, "rewards": {}, "sampling": raw["sampling"] | {"groups": 3}}


@pytest.mark.parametrize("times", [Uniform(), LogitNormal(count=1, shift="model")], ids=lambda times: times.name)
def test_loss_and_gradient_are_those_of_flow_matching(times: Any) -> None:
    run = testing.learning(SFTConfig(timesteps=times), [1.0] * 8, START, 4, ODE())
    run.move_to(*LATER)
    hands = [NoisedByHand(at) for at in run.noised_batches(times)]
    testing.check_losses(run, [(hand.error(LATER), hand.error_gradient(LATER)) for hand in hands])


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 7.3])
@pytest.mark.parametrize("steps", [3, 4, 10, 50])
def test_the_shift_of_a_schedule_is_found_wherever_its_last_step_begins(shift: float, steps: int) -> None:
    for last in (1 / steps, 0.001, 0.05):
        even = torch.cat([torch.linspace(1, last, steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
        assert schedule_shift(shift_sigma(even, shift).float()) == pytest.approx(shift, rel=1e-3)


def test_times_of_the_model_are_moved_as_its_schedule_is() -> None:
    schedule = shift_sigma(torch.linspace(1, 0, 9), 3.0)
    told = [LogitNormal(count=4, shift=shift).sigmas(schedule, generator("x")) for shift in ("model", 3.0)]
    torch.testing.assert_close(*told, rtol=1e-4, atol=1e-6)


def test_a_run_learns_from_the_latents_of_its_records_alone(tmp_path: Path) -> None:
    raw = settings(tmp_path)
    experience = testing.begin(raw).draw(0).experience
    by_prompt = {index: (grey / 255 - 0.5) * 4 for index, grey in enumerate(GREYS)}
    for key, latents in zip(experience.plan.keys, experience.latents, strict=True):
        torch.testing.assert_close(latents, torch.full((1, 4, 4), by_prompt[key.prompt]), rtol=0, atol=1e-6)
    assert len({key.prompt for key in experience.plan.keys}) == 3
    assert experience.steps == ()
    assert experience.rewards == {}
    trained = testing.train(raw)
    assert "preflight: no step is recorded: records are learned from, and nothing is drawn" in trained.said
    told = {name for record in trained.records for name in record}
    assert not [name for name in told if "reward/" in name or name in ("seconds/sample", "groups/equal")]
    CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "pictures drawn" not in page
    assert "Groups that teach nothing" not in page
    done = CliRunner().invoke(app, ["doctor", str(tmp_path / "run")])
    assert done.output.endswith(
        "nothing is wrong; how figures move is not judged: a run of fewer than 16 iterations is too short for that\n"
    )


def test_what_it_learns_lowers_the_loss_of_the_records(tmp_path: Path) -> None:
    raw = settings(tmp_path, iterations=30)
    learned = testing.train(raw).weights(30)
    run = testing.begin(raw).draw(0)
    losses = [sum(float(loss.values.detach().sum()) for loss in run.losses())]
    run.move_to(float(learned["transformer.p"]), float(learned["transformer.q"]))
    losses.append(sum(float(loss.values.detach().sum()) for loss in run.losses()))
    assert losses[1] < losses[0]


def test_a_resumed_run_gives_the_weights_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    testing.check_resumes_bit_for_bit(settings(tmp_path, batch_size=2))


def test_records_are_encoded_once_and_again_where_their_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    from flowfactory.testing.two_parameter import TwoParameter

    encode = TwoParameter.encode_media

    def note(self: TwoParameter, media: torch.Tensor) -> torch.Tensor:
        seen.append(float(media.mean()))
        return encode(self, media)

    note.flowfactory_impl = encode.flowfactory_impl  # type: ignore[attr-defined]
    monkeypatch.setattr(TwoParameter, "encode_media", note)
    raw = settings(tmp_path)
    testing.begin(raw)
    assert len(seen) == len(GREYS)
    testing.begin(raw)
    assert len(seen) == len(GREYS)
    Image.new("RGB", (4, 4), (1, 1, 1)).save(tmp_path / "0-target.png")
    testing.begin(raw)
    assert seen[len(GREYS) :] == [pytest.approx(1 / 255)]


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"training": {"regularise": {"sft": 0.1}}}, "training.regularise: algorithm sft learns from records itself"),
        ({"training": {"keep_graphs": True}}, "training.keep_graphs: algorithm sft learns not through the forwards that drew"),
        (
            {"training": {"updates": 4}},
            r"training.updates \(4\) is more than the 3 targets there are; set it lower, or sampling.groups higher",
        ),
    ],
)
def test_what_means_nothing_for_records_is_refused(tmp_path: Path, change: dict[str, Any], pattern: str) -> None:
    raw = settings(tmp_path)
    for section, values in change.items():
        raw[section] = raw[section] | values
    with pytest.raises(UserError, match=pattern):
        validate(raw)


def test_a_prompt_without_a_target_is_named(tmp_path: Path) -> None:
    raw = settings(tmp_path)
    file = Path(raw["prompts"]["train"])
    file.write_text(file.read_text() + '\n{"prompt": "nothing but words"}')
    with pytest.raises(UserError, match="'nothing but words' brings no 'target', which is learned from"):
        prepare_run(validate(raw))


def test_a_picture_is_refused_where_videos_are_drawn(tmp_path: Path) -> None:
    raw = settings(tmp_path)
    raw["sampling"] = raw["sampling"] | {"frames": 3}
    with pytest.raises(UserError, match=r"0-target\.png is a picture, and the model draws videos of 3 frames"):
        prepare_run(validate(raw))
