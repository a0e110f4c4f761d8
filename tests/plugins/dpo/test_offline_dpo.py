"""DPO on pairs of records: the chosen is preferred to the rejected, by the loss of the paper."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from record_files import GREYS, write_records

from flowfactory import testing
from flowfactory.config.loading import validate
from flowfactory.errors import UserError
from flowfactory.runs.train import train
from flowfactory.testing import ODE, NoisedByHand
from flowfactory_dpo.offline_dpo import OfflineDPOConfig

START, LATER = (0.3, -0.2), (0.31, -0.21)


def settings(folder: Path, **training: Any) -> dict[str, Any]:
    file = write_records(folder, ("chosen", "rejected"))
    raw = testing.settings(folder, "offline-dpo", prompts={"train": str(file)}, training={"updates": 2, **training})
    return {**raw, "rewards": {}, "sampling": raw["sampling"] | {"groups": 3}}


def test_loss_and_gradient_are_those_of_the_paper_with_one_noise_and_time_for_both() -> None:
    config = OfflineDPOConfig()
    run = testing.learning(config, [1.0, -1.0] * 3, START, 2, ODE())
    run.move_to(*LATER)
    expected = []
    for at in run.noised_batches(config.timesteps, shared=True):
        hand, chosen, rejected = NoisedByHand(at), [0, 2, 4], [1, 3, 5]
        noise = at.target + at.samples.latents
        torch.testing.assert_close(noise[chosen], noise[rejected], rtol=0, atol=1e-6)
        assert torch.equal(at.step.sigma[chosen], at.step.sigma[rejected])
        gap, slope = hand.error(LATER) - hand.error(START), hand.error_gradient(LATER)
        margin = -2000 / 2 * (gap[chosen] - gap[rejected])
        wrong = torch.sigmoid(-margin)
        expected.append((-torch.nn.functional.logsigmoid(margin), (wrong * 1000)[:, None] * (slope[chosen] - slope[rejected])))
    testing.check_losses(run, expected, values=(1e-3, 1e-3), gradients=(1e-3, 1e-2))


def test_where_chosen_is_rejected_nothing_is_learned() -> None:
    run = testing.learning(OfflineDPOConfig(), [1.0, -1.0], START, 2, ODE())
    same = run.experience.latents[:1].repeat(2, 1, 1, 1)
    equal = replace(run, experience=replace(run.experience, latents=same))
    equal.move_to(*LATER)
    (loss,) = equal.losses()
    assert loss.values.item() == pytest.approx(math.log(2))
    assert equal.gradient(loss.values).abs().max() < 1e-4, "the two arms cancel but for rounding"


def test_a_run_tells_how_often_the_chosen_is_preferred_and_learns_it(tmp_path: Path) -> None:
    trained = testing.train(settings(tmp_path, iterations=30))
    assert "preflight: chosen and rejected differ in 100% of the pairs" in trained.said
    late = trained.records[-8:]
    assert sum(record["preferred"] for record in late) / 8 > 0.5
    assert all(math.isfinite(record["margin"]) for record in trained.records)


def test_a_resumed_run_gives_the_weights_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    testing.check_resumes_bit_for_bit(settings(tmp_path, batch_size=2))


def test_pairs_that_are_all_the_same_are_told_before_anything_is_learned(tmp_path: Path) -> None:
    raw = settings(tmp_path)
    for number in range(len(GREYS)):
        (tmp_path / f"{number}-rejected.png").write_bytes((tmp_path / f"{number}-chosen.png").read_bytes())
    with testing.run_suite.cache_of(raw), pytest.raises(Exception, match="chosen and rejected are the same in every pair"):
        train(validate(raw), say=lambda _: None)


def test_a_pair_of_which_one_is_missing_is_named(tmp_path: Path) -> None:
    raw = settings(tmp_path)
    file = Path(raw["prompts"]["train"])
    file.write_text(file.read_text() + '\n{"prompt": "one alone", "chosen": "0-chosen.png"}')
    with (
        testing.run_suite.cache_of(raw),
        pytest.raises(UserError, match="'one alone' brings no 'rejected', which is learned from"),
    ):
        train(validate(raw), say=lambda _: None)
