"""Every algorithm that needs no more than prompts and pictures has a bundled example of its name, which trains."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flowfactory.cli.main import app
from flowfactory.config import loading
from flowfactory.discovery.descriptions import EVIDENCE, evidence
from flowfactory.discovery.discover import discover
from flowfactory.runs.train import train

ALGORITHMS = sorted(discover().components["algorithm"].keys() - {"opd"})  # whose teachers are somebody's own; its page has one
SHORT = ("training.iterations=2", "training.updates=2", "sampling.groups=2", "sampling.steps=4", "prompts.heldout=null")


def test_every_algorithm_has_an_example():
    assert {*ALGORITHMS, "quickstart"} <= set(discover().components["example"])


def test_every_example_says_how_far_it_was_tried_and_what_is_missing():
    for name, example in discover().components["example"].items():
        found = evidence(example)
        assert found in EVIDENCE, name
        told = next(line for line in Path(example.spec).read_text().splitlines() if line.startswith("# Evidence: "))
        assert found == "gated" or re.search(r"missing|nothing holds it", told), name
        if found == "measured":
            assert (Path(__file__).parents[2] / re.search(r"benchmarks/\S+\.json", told)[0]).is_file()
    done = CliRunner().invoke(app, ["plugins", "list", "--kind", "example", "--json"])
    told = {each["name"]: each["evidence"] for each in json.loads(done.output)["components"]}
    assert told["quickstart"] == "measured"


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
