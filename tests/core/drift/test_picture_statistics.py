"""Figures of pictures against what is counted by hand."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowfactory.drift import picture_statistics as statistics
from flowfactory.drift.panel import look

RED, GREEN, WHITE, BLACK = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)


def plain(*colours: tuple[float, ...], size: tuple[int, int] = (8, 8)) -> Tensor:
    """A picture of each colour."""
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, *size).clone()


def checkerboard(size: int, cell: int) -> Tensor:
    """[1, H, W], 0 and 1."""
    place = torch.arange(size) // cell
    return ((place[:, None] + place) % 2).float()[None]


def test_luma_is_that_of_jpeg() -> None:
    assert statistics.mean_luma(plain(RED, GREEN, WHITE, BLACK)).tolist() == pytest.approx([0.299, 0.587, 1, 0])
    assert statistics.mean_luma(plain((0.25,), (1.0,))).tolist() == [0.25, 1.0]


def test_saturation_weighs_a_pixel_by_its_value() -> None:
    half = plain((1.0, 0.5, 0.5), WHITE, BLACK)
    assert statistics.saturation(half).tolist() == [0.5, 0.0, 0.0]
    two = torch.cat([plain(RED), plain((0.01, 0.0, 0.0))], dim=3)
    assert statistics.saturation(two).tolist() == [1.0]
    mixed = torch.cat([plain(RED), plain(WHITE)], dim=3)  # (1 + 0) / (1 + 1)
    assert statistics.saturation(mixed).tolist() == [0.5]
    assert statistics.saturation(plain((0.3,))).tolist() == [0.0]


def test_edge_density_counts_pixels_beside_or_above_another_luma() -> None:
    grey = torch.zeros(2, 5, 5)
    grey[0, :, 3:] = 0.2  # one column of four, in each of the four rows that have one below
    grey[1, :, 3:] = 0.05  # too little
    assert statistics.edge_density(grey).tolist() == [4 / 16, 0.0]
    assert statistics.edge_density(torch.rand(1, 1, 9)).tolist() == [0.0]


def test_colour_entropy_is_in_bits() -> None:
    quarters = torch.cat([plain(c) for c in (RED, GREEN, WHITE, BLACK)], dim=3)
    assert statistics.colour_entropy(quarters).tolist() == [2.0]
    half = torch.cat([plain((0.1,)), plain((0.1,)), plain((0.9,)), plain((0.4,))], dim=3)
    assert statistics.colour_entropy(half).tolist() == pytest.approx([1.5])
    assert statistics.colour_entropy(plain(RED)).tolist() == [0.0]


def test_pictures_of_a_batch_do_not_count_into_one_another() -> None:
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    together = statistics.colour_entropy(pictures).tolist()
    assert together == [float(statistics.colour_entropy(one[None])) for one in pictures]


def test_jpeg_bytes_are_those_of_pillow() -> None:
    picture = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    pixels = np.round(picture[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, format="JPEG", quality=85)
    assert statistics.jpeg_bytes(picture) == [len(file.getvalue()) / (16 * 24)]
    assert statistics.jpeg_bytes(plain((0.5,)))[0] < statistics.jpeg_bytes(torch.rand(1, 1, 8, 8))[0]


@pytest.mark.parametrize("period", [4, 8])
def test_grid_energy_is_the_share_of_the_spectrum_at_the_grids_frequencies(period: int) -> None:
    grey = torch.rand(2, 32, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = torch.fft.fft2(grey).abs().square()
    spectrum[:, 0, 0] = 0
    wanted = spectrum[:, :: 32 // period, :: 48 // period].sum((1, 2)) / spectrum.sum((1, 2))
    assert statistics.grid_energy(grey.float(), period).tolist() == pytest.approx(wanted.tolist(), rel=1e-4)


def test_a_checkerboard_is_all_grid_and_one_colour_none() -> None:
    board = torch.cat([checkerboard(32, 2), checkerboard(32, 1), torch.full((1, 32, 32), 0.7)])
    assert statistics.grid_energy(board, 4).tolist() == pytest.approx([1.0, 1.0, 0.0])
    ramp = torch.linspace(0, 1, 32).expand(1, 32, 32)  # of cells of four: 4² - 1 of 32² - 1
    assert statistics.grid_energy(ramp, 4).tolist() == pytest.approx([15 / 1023], rel=1e-4)
    assert not statistics.has_grid(torch.zeros(7, 9), 4)
    assert statistics.has_grid(torch.zeros(8, 9), 4)
    assert not statistics.has_grid(torch.zeros(8, 9), None)


def test_pairwise_distance_is_the_mean_over_pairs_of_the_root_mean_square() -> None:
    pictures = plain((0.0,), (0.3,), (0.9,))
    assert float(statistics.pairwise_distance(pictures)) == pytest.approx((0.3 + 0.6 + 0.9) / 3)
    assert float(statistics.pairwise_distance(pictures[:1].repeat(4, 1, 1, 1))) == 0


def test_windows_are_spread_over_all_frames() -> None:
    assert [list(window) for window in statistics.frame_windows(81, 4)] == [
        [0, 1, 2],
        [26, 27, 28],
        [52, 53, 54],
        [78, 79, 80],
    ]
    assert [list(window) for window in statistics.frame_windows(5, 4)] == [[0, 1, 2]]
    assert [list(window) for window in statistics.frame_windows(2, 4)] == [[0, 1]]


def test_what_changes_steadily_does_not_flicker() -> None:
    steady = torch.tensor([0.0, 0.1, 0.2]).view(1, 3, 1, 1, 1).expand(1, 3, 3, 8, 8)
    to_and_fro = torch.tensor([0.2, 0.5, 0.2]).view(1, 3, 1, 1, 1).expand(1, 3, 3, 8, 8)
    assert statistics.frame_difference(steady).tolist() == pytest.approx([0.1])
    assert statistics.flicker(steady).tolist() == pytest.approx([0.0], abs=1e-7)
    assert statistics.frame_difference(to_and_fro).tolist() == pytest.approx([0.3])
    assert statistics.flicker(to_and_fro).tolist() == pytest.approx([0.6])


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 8, 8), (2, 3, 8, 8), (1, 3, 1, 1), (1, 2, 4, 5), (1, 4, 9, 7), (1, 3, 700, 1024), (1, 1, 3, 8, 8), (1, 2, 3, 8, 8)],
)
@pytest.mark.parametrize("fill", ["noise", "zero", "one"])
def test_every_medium_has_finite_figures(shape: tuple[int, ...], fill: str) -> None:
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    media = {"noise": noise, "zero": torch.zeros(shape), "one": torch.ones(shape)}[fill]
    for dtype in (torch.float32, torch.bfloat16):
        for sight in look(media.to(dtype), 4):
            assert all(math.isfinite(value) for value in sight.figures.values()), sight.figures
            assert sight.picture.dtype == torch.float32


def test_a_long_video_is_looked_at_in_a_few_frames() -> None:
    video = torch.zeros(1, 81, 3, 16, 16)
    video[:, 40] = 1.0  # in no window
    video[:, 27] = 0.5  # in the middle of the second
    (sight,) = look(video, 4)
    assert sight.figures["luma"] == pytest.approx(0.5 / 4)
    # of eight differences two are a half; of four second differences one is a whole
    assert sight.figures["frame_difference"] == pytest.approx(2 * 0.5 / 8)
    assert sight.figures["flicker"] == pytest.approx(1.0 / 4)
    assert "flicker" not in look(video[:, :2], 4)[0].figures
    assert "frame_difference" not in look(video[:, :1], 4)[0].figures


def test_a_large_picture_is_shrunk_for_its_colours_and_cropped_for_its_edges() -> None:
    picture = torch.zeros(1, 3, 1024, 1024)
    picture[..., :512] = 1.0  # the left half
    (sight,) = look(picture, 8)
    assert sight.figures["luma"] == pytest.approx(0.5)
    assert sight.figures["edge_density"] == pytest.approx(1 / 511)
    assert sight.picture.shape == (3, 16, 16)
