from pathlib import Path
from typing import Any

import pytest
from flowfactory import testing

from flowfactory_newname.algorithm import NewNameConfig

ADVANTAGES = [1.0, -1.0, 0.5, -0.5]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A config of three iterations on a flow with two weights."""
    return testing.settings(tmp_path, {"name": "newname"}, sampling={"dynamics": "flow-sde"})


def test_it_keeps_the_contract_and_learns() -> None:
    testing.check_algorithm(NewNameConfig())


def test_advantages_of_zero_move_nothing() -> None:
    testing.check_no_advantage_no_gradient(testing.learning(NewNameConfig(kl=0.0), ADVANTAGES))


def test_the_divergence_is_zero_until_the_weights_move_and_pulls_them_back() -> None:
    testing.check_penalty(testing.learning(NewNameConfig(), ADVANTAGES), "kl", away=(0.4, -0.1))


def test_a_run_reports_its_divergence_and_resumes_to_the_bit(settings: dict[str, Any]) -> None:
    testing.check_runs(settings, terms=["kl"])
    testing.check_resumes_bit_for_bit({**settings, "output": {"dir": settings["output"]["dir"] + "-again"}})


def test_steps_without_a_log_density_are_refused(settings: dict[str, Any]) -> None:
    settings["sampling"]["dynamics"] = "ode"
    testing.check_refused(settings, "needs steps with a log-density")
