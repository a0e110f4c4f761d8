from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import rankdata

from flowfactory import Samples, UserError
from flowfactory.config.component_slots import parse_component
from flowfactory.config.loading import validate
from flowfactory.config.schema import RunConfig
from flowfactory.runs.resume import config_changes, fixed_config
from flowfactory.testing import check_reward
from flowfactory.testing.two_parameter import settings
from flowfactory_rewards.group_rank import GroupRankConfig, rank_in_groups
from flowfactory_rewards.jpeg_size import JpegSizeConfig


def test_ranks_within_groups_are_scipys_from_0_to_1() -> None:
    source = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (24,), generator=source).float()
    groups = torch.tensor([3] * 9 + [1] * 7 + [2] * 8)[torch.randperm(24, generator=source)]
    found = rank_in_groups(scores, groups)
    for group in (1, 2, 3):
        mine = groups == group
        expected = (rankdata(scores[mine].numpy()) - 1) / (int(mine.sum()) - 1)
        assert found[mine].tolist() == pytest.approx(expected.tolist())


def test_the_best_is_1_the_worst_0_ties_share_and_one_alone_is_in_the_middle() -> None:
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    found = rank_in_groups(torch.tensor([-1e9, 5.0, 5.0, 0.1, 0.3, 0.2, 7.0]), groups)
    assert found.tolist() == pytest.approx([0, 0.75, 0.75, 0, 1, 0.5, 0.5])


def test_roundings_of_a_constant_are_no_order() -> None:
    score = torch.tensor(0.1)
    up = torch.nextafter(score, torch.tensor(1.0))
    found = rank_in_groups(torch.stack([score, up, score, score, up + 0.1]), torch.tensor([0, 0, 0, 1, 1]))
    assert found.tolist() == [0.5, 0.5, 0.5, 0.0, 1.0]


def test_it_takes_any_reward_by_its_name_or_with_its_options() -> None:
    source = torch.Generator().manual_seed(1)
    media = torch.rand(6, 3, 16, 16, generator=source) * torch.linspace(0.1, 1, 6).reshape(6, 1, 1, 1)
    samples = Samples(media, ("a",) * 6, torch.tensor([0, 0, 0, 1, 1, 1]), ({},) * 6)
    sizes = check_reward(JpegSizeConfig(), samples)["under test"]
    found = check_reward(GroupRankConfig(of=JpegSizeConfig()), samples, pointwise=False)["under test"]
    assert found.tolist() == pytest.approx(rank_in_groups(sizes, samples.groups).tolist())
    assert sorted(found[:3].tolist()) == [0, 0.5, 1]
    for given in ("jpeg-size", {"name": "jpeg-size", "prefer": "large"}):
        config = parse_component("reward", {"name": "group-rank", "of": given, "weight": 0.5})
        turned = check_reward(config, samples, pointwise=False)["under test"]
        assert turned.tolist() == pytest.approx((found if given == "jpeg-size" else 1 - found).tolist())


def configured(folder: Path, of: object) -> RunConfig:
    """As a user writes it."""
    raw = settings(folder, "grpo", rewards={"order": {"name": "group-rank", "of": of}}, sampling={"dynamics": "flow-sde"})
    return validate(raw, folder=folder)


def test_a_mistake_in_the_inner_reward_is_named(tmp_path: Path) -> None:
    def refused(of: object) -> str:
        with pytest.raises(UserError) as error:
            configured(tmp_path, of)
        return str(error.value)

    assert refused("jpg-size") == "config: rewards.order.of: no reward called 'jpg-size'; did you mean 'jpeg-size'?"
    assert refused({"name": "jpeg-size", "qualty": 3}) == (
        "config: rewards.order.of.qualty: unknown key; did you mean 'quality'?"
    )
    assert refused({"quality": 3}) == "config: rewards.order.of: say which reward with 'name'"
    assert "unknown key" in refused({"name": "jpeg-size", "weight": 2})  # its place within another has no weight


def test_what_an_inner_reward_calls_free_to_change_is_so_within_another(tmp_path: Path) -> None:
    def found(**options: object) -> dict[str, object]:
        return configured(tmp_path, {"name": "remote", "url": "http://127.0.0.1:1", **options})

    assert config_changes(fixed_config(found()), found(url="http://127.0.0.1:2", requests=3)) == []
    assert config_changes(fixed_config(found()), found(encoding="raw")) == ["rewards.order.of.encoding (png then, raw now)"]
