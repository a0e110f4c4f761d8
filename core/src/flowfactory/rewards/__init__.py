"""Rewards: scoring, executors, statistics, shared models, and rewards over HTTP."""

from flowfactory.data.media import to_pixels
from flowfactory.data.prompts import read_prompts
from flowfactory.rewards.prompt_checks import check_prompts, judges
from flowfactory.rewards.scoring import Rewards
from flowfactory.rewards.shared_models import load_shared
from flowfactory.rl.groups import rows_by_group

__all__ = ["Rewards", "check_prompts", "judges", "load_shared", "read_prompts", "rows_by_group", "to_pixels"]
