from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from flowfactory.distributed.ranks import ALONE
from flowfactory.runs.directory import RunDirectory
from flowfactory.training.extremes import BYTES, EACH, Extremes, shrink, side_of

Trained = Callable[..., RunDirectory]


def test_the_best_come_first_and_then_the_worst_with_pictures_and_scores_of_their_own() -> None:
    extremes, media = Extremes(ALONE), torch.arange(20).view(20, 1, 1, 1).expand(20, 3, 4, 4) / 255
    extremes.begin(20)
    for rows in (range(8), range(8, 20)):  # in two rounds, the second one's samples in another order
        held = list(range(len(rows)))[::-1]
        extremes.add(media[[rows[i] for i in held]], [held], rows)
    advantages = torch.tensor([(7 * row) % 20 for row in range(20)], dtype=torch.float32)
    scores = {"taste": torch.arange(20) / 10, "absent": torch.full([20], torch.nan)}
    extremes.judge(advantages, scores, [f"prompt {row}" for row in range(20)])
    found = extremes.gather()
    expected = [max(range(20), key=lambda row: (7 * row) % 20), min(range(20), key=lambda row: (7 * row) % 20)]
    assert [each.which for each in found] == ["best"] * EACH + ["worst"] * EACH
    assert [found[0].prompt, found[EACH].prompt] == [f"prompt {row}" for row in expected]
    for each in found:
        row = int(each.prompt.split()[1])
        assert each.scores == {"taste": pytest.approx(row / 10)}
        assert each.picture.unique().tolist() == [row]
        assert ((7 * row) % 20 >= 14) == (each.which == "best")


def test_copies_of_however_many_samples_take_no_more_than_was_said() -> None:
    for count in (1, 341, 768, 5000):
        assert side_of(count) == 256 or 3 * count * side_of(count) ** 2 <= BYTES
    small = shrink(torch.rand(2, 5, 3, 300, 200), 60)  # of a video the middle frame
    assert (small.shape, small.dtype) == ((2, 3, 60, 40), torch.uint8)
    exact = torch.rand(2, 3, 16, 24)
    assert torch.equal(shrink(exact, 24), (exact * 255).round().byte())


def test_a_run_leaves_the_best_and_the_worst_of_its_last_iteration(trained: Trained) -> None:
    directory = trained({"evaluation": {"every": 1}})
    folder = directory.samples / "training"
    index = json.loads((folder / "index.json").read_text())
    assert {each["iteration"] for each in index} == {3}
    assert [each["which"] for each in index] == ["best"] * EACH + ["worst"] * EACH
    assert sorted(path.name for path in folder.glob("*.png")) == sorted(each["file"] for each in index)
    for each in index:
        with Image.open(folder / each["file"]) as picture:
            assert picture.size == (4, 4)
    assert sum(each["scores"]["bright"] for each in index[:EACH]) > sum(each["scores"]["bright"] for each in index[EACH:])
