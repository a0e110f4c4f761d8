from __future__ import annotations

from io import BytesIO

import pytest
import torch
from PIL import Image

from flowfactory import Samples
from flowfactory.testing import check_reward
from flowfactory_rewards.jpeg_size import JpegSizeConfig


def samples(media: torch.Tensor) -> Samples:
    count = len(media)
    return Samples(media, ("a",) * count, torch.zeros(count, dtype=torch.int64), ({},) * count)


def pictures() -> torch.Tensor:
    """A plain one, a ramp and noise: [3, 3, 32, 48]."""
    noise = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 1, 48).expand(3, 32, 48)
    return torch.stack([torch.full((3, 32, 48), 0.5), ramp, noise])


def kilobytes(picture: torch.Tensor, quality: int = 95) -> float:
    file = BytesIO()
    Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=quality)
    return file.tell() / 1000


def test_the_score_is_the_size_of_the_file() -> None:
    small = check_reward(JpegSizeConfig(), samples(pictures()))["under test"]
    assert small.tolist() == pytest.approx([-kilobytes(picture) for picture in pictures()])
    assert small[0] > small[1] > small[2]


def test_large_files_are_preferred_on_request() -> None:
    large = check_reward(JpegSizeConfig(prefer="large", quality=50), samples(pictures()))["under test"]
    assert large.tolist() == pytest.approx([kilobytes(picture, 50) for picture in pictures()])


@pytest.mark.parametrize(("frames", "looked_at"), [(8, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (1, [0])])
def test_a_video_scores_the_mean_of_evenly_spread_frames(frames: int, looked_at: list[int]) -> None:
    source = torch.Generator().manual_seed(1)
    clips = torch.rand(2, 5, 3, 16, 16, generator=source) * torch.linspace(0.1, 1, 5).reshape(1, 5, 1, 1, 1)
    scores = check_reward(JpegSizeConfig(frames=frames), samples(clips))["under test"]
    expected = [-sum(kilobytes(clip[i]) for i in looked_at) / len(looked_at) for clip in clips]
    assert scores.tolist() == pytest.approx(expected)
