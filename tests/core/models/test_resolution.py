from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfactory.models.resolution import Grid

GRIDS = st.builds(Grid, st.integers(1, 64), st.just(float("inf")), st.sampled_from([None, 1, 4, 8]))


@given(GRIDS, st.integers(1, 5000), st.integers(1, 400))
def test_the_nearest_can_be_drawn_and_nothing_is_nearer(grid: Grid, pixels: int, frames: int) -> None:
    side = grid.side(pixels)
    assert side % grid.multiple == 0
    assert side > 0
    assert abs(side - pixels) <= max(grid.multiple / 2, grid.multiple - pixels)
    grid.check("sampling", (side, side), None)
    if grid.stride is not None:
        nearest = grid.frames(frames)
        assert (nearest - 1) % grid.stride == 0
        assert abs(nearest - frames) <= grid.stride / 2
        grid.check("sampling", None, nearest)


@pytest.mark.parametrize(
    ("grid", "size", "frames", "sentence"),
    [
        (Grid(16), (512, 500), None, "sampling.size [512, 500]: this model draws multiples of 16; the nearest is [512, 496]"),
        (
            Grid(16, 64),
            (96, 1),
            None,
            "sampling.size [96, 1]: this model draws multiples of 16 up to 64; the nearest is [64, 16]",
        ),
        (Grid(16), (32, 32), 5, "sampling.frames: this model draws pictures; leave it out"),
        (Grid(16, stride=4), None, 80, "sampling.frames 80: this model draws 1 + a multiple of 4 frames; the nearest is 81"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_nearest(
    grid: Grid, size: tuple[int, int] | None, frames: int | None, sentence: str
) -> None:
    with pytest.raises(ValueError) as refused:
        grid.check("sampling", size, frames)
    assert str(refused.value) == sentence
