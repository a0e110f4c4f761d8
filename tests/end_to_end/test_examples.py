"""Every algorithm that needs no more than prompts and pictures has a bundled example of its name, which trains."""

import pytest

from flowfactory.config import loading
from flowfactory.discovery.discover import discover
from flowfactory.runs.train import train

ALGORITHMS = sorted(discover().components["algorithm"].keys() - {"opd"})  # whose teachers are somebody's own; its page has one
SHORT = ("training.iterations=2", "training.updates=2", "sampling.groups=2", "sampling.steps=4", "prompts.heldout=null")


def test_every_algorithm_has_an_example():
    assert {*ALGORITHMS, "quickstart"} <= set(discover().components["example"])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_example_is_of_the_algorithm_it_is_named_after_and_trains(name, tmp_path, cache, monkeypatch):
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(cache))
    drawn = ["sampling.group_size=6"] if loading.load(name).algorithm.learns_from == "samples" else []
    chosen = loading.load(name, [*SHORT, *drawn], out=tmp_path / "run")
    assert chosen.algorithm.name == name
    said: list[str] = []
    records = train(chosen, say=said.append).records()
    told = 3 + chosen.algorithm.rewarded + (chosen.algorithm.learns_from == "pairs") + len(chosen.algorithm.roles)
    assert sum(line.startswith("preflight: ") for line in said) == told
    assert [record["iteration"] for record in records] == [0, 1, 2]
    assert all(record["grad_norm"] > 0 for record in records[1:])
