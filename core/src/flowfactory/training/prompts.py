"""The prompts of a run, read and checked against what it trains and scores."""

from __future__ import annotations

from flowfactory.config.schema import RunConfig, reward_weight
from flowfactory.data import prompts
from flowfactory.types import Prompt


def prepare_prompts(
    config: RunConfig, trains: bool = True, scores: bool = True
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """The training prompts, none unless it ``trains``, and the held-out ones, none where it neither trains nor ``scores``.

    UserError: they are not what the model takes.
    """
    wanted = config.prompts
    train = prompts.read_prompts(wanted.train, wanted.video_fps) if trains else ()
    heldout = prompts.read_prompts(wanted.heldout, wanted.video_fps) if wanted.heldout and (trains or scores) else ()
    prompts.check_media([*train, *heldout], config.model.takes, getattr(config.model, "name", "model"))
    prompts.check_files(train, config.model, config.sampling.canvas.frames)
    prompts.check_files(heldout, config.model, config.evaluation.canvas(config.sampling).frames)
    prompts.check_picture_tokens([*train, *heldout], config.model, config.distributed.context)
    labels, learned = [*config.rewards, *config.evaluation.rewards], {x for x, r in config.rewards.items() if reward_weight(r)}
    prompts.check_reward_labels(train, labels, learned)
    prompts.check_reward_labels(heldout, labels)
    return train, heldout
