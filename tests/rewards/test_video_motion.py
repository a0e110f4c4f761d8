from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reward_run import config_with_reward
from torch.nn import functional

from flowfactory import RunError, Samples, UserError
from flowfactory.testing import check_reward
from flowfactory_rewards.video_motion import VideoMotionConfig

HEIGHT, WIDTH = 96, 128
DIAGONAL = (HEIGHT**2 + WIDTH**2) ** 0.5  # 160 pixels


def samples(clips: torch.Tensor, frame_rate: float | None = None) -> Samples:
    count = len(clips)
    return Samples(clips, ("a",) * count, torch.arange(count), ({},) * count, frame_rate=frame_rate)


def moving(down: int, right: int, frames: int = 4, seed: int = 0) -> torch.Tensor:
    """A texture [frames, 3, HEIGHT, WIDTH] that moves by so many pixels a frame; what comes in was not seen before."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 60, 60, generator=source)
    texture = functional.interpolate(coarse, (400, 400), mode="bicubic").clamp(0, 1)[0]
    corners = [(120 - down * i, 120 - right * i) for i in range(frames)]
    return torch.stack([texture[:, top : top + HEIGHT, left : left + WIDTH] for top, left in corners])


def scores(config: VideoMotionConfig, clips: torch.Tensor) -> list[float]:
    return check_reward(config, samples(clips), varies=False)["under test"].tolist()


@pytest.mark.parametrize(("down", "right"), [(0, 2), (3, 0), (-4, 3), (0, -8), (6, 6)])
def test_a_texture_that_moves_scores_its_speed(down: int, right: int) -> None:
    [score] = scores(VideoMotionConfig(), moving(down, right)[None])
    assert score == pytest.approx((down**2 + right**2) ** 0.5 / DIAGONAL, rel=0.1)


def test_a_still_scores_nothing() -> None:
    stills = torch.stack([moving(0, 0), torch.full((4, 3, HEIGHT, WIDTH), 0.5)])
    assert scores(VideoMotionConfig(), stills) == [0, 0]


def test_speed_is_a_second_where_the_model_tells_its_frames_a_second() -> None:
    clips = torch.stack([moving(0, 2), moving(0, 4, seed=1)])
    reward = VideoMotionConfig().build("moves")
    slow = reward.compute_reward(samples(clips))["moves"]
    assert torch.allclose(reward.compute_reward(samples(clips, frame_rate=16.0))["moves"], 16 * slow)


def test_speed_does_not_depend_on_how_many_frames_are_looked_at() -> None:
    clip = moving(1, 1, frames=9)[None]
    for frames in (3, 5, 9, 99):
        assert scores(VideoMotionConfig(frames=frames), clip) == pytest.approx([2**0.5 / DIAGONAL], rel=0.1)


def test_all_pairs_of_frames_count() -> None:
    """A texture that moves between its first two frames and then stands."""
    there, stands = moving(0, 4, frames=2), moving(0, 4, frames=2)[1:]
    clip = torch.cat([there, stands, stands])[None]
    assert scores(VideoMotionConfig(), clip) == pytest.approx([4 / 3 / DIAGONAL], rel=0.1)


def test_one_channel_moves_as_three_do() -> None:
    clip = moving(0, 3)[None, :, :1]
    [one], [three] = (scores(VideoMotionConfig(), clips) for clips in (clip, clip.expand(-1, -1, 3, -1, -1)))
    assert one == pytest.approx(three, rel=1e-3)


def test_speed_beyond_a_limit_gains_nothing() -> None:
    clips = torch.stack([moving(0, 2), moving(0, 8)])
    slow, fast = scores(VideoMotionConfig(at_most=0.03), clips)
    assert slow == pytest.approx(2 / DIAGONAL, rel=0.1)
    assert fast == pytest.approx(0.03)


def test_pictures_are_refused_before_and_while_drawing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"video-motion looks at videos, and this run draws pictures; set sampling.frames to 2"):
        config_with_reward(tmp_path, {"name": "video-motion"})
    assert config_with_reward(tmp_path, {"name": "video-motion"}, frames=5)
    for media in (torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 3, 32, 32)):
        with pytest.raises(RunError, match="motion is between frames"):
            VideoMotionConfig().build("moves").compute_reward(samples(media))


def test_only_what_the_reward_judges_must_move(tmp_path: Path) -> None:
    motion = {"name": "video-motion"}
    with pytest.raises(UserError, match=r"set evaluation.frames to 2"):
        config_with_reward(tmp_path, None, evaluation=motion)
    assert config_with_reward(tmp_path, None, evaluation=motion, evaluated_frames=5)
    with pytest.raises(UserError, match=r"set sampling.frames to 2"):
        config_with_reward(tmp_path, motion, evaluation={"name": "bright"}, evaluated_frames=5)
