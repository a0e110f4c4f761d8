"""What goes with ranks that share a forward, and what is said of what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfactory.canvas import Canvas
from flowfactory.models.context_checks import check_heads, check_text, nearest_divided
from flowfactory.models.resolution import Grid

SIDES = st.integers(1, 70)


@given(SIDES, SIDES, st.integers(0, 25), st.integers(1, 24))
def test_the_nearest_size_can_be_drawn_and_divided_and_none_with_another_side_is_nearer(
    height: int, width: int, latents: int, parts: int
) -> None:
    grid = Grid(16, stride=4)
    canvas = Canvas(16 * height, 16 * width, 1 + 4 * latents)
    near = nearest_divided(grid, canvas, parts)
    assert near is not None, "there is always a side that is a multiple"
    assert near.frames == canvas.frames
    grid.check("sampling", near[:2], near.frames)
    assert grid.tokens(near) % parts == 0
    moved = abs(near.height - canvas.height) + abs(near.width - canvas.width)
    assert (moved == 0) == (height * width * (1 + latents) % parts == 0)
    for side in range(max(1, height - 24), height + 25):
        if side * width * (1 + latents) % parts == 0:
            assert moved <= 16 * abs(side - height)


def test_a_side_that_would_be_too_long_is_none() -> None:
    assert nearest_divided(Grid(16, 32), Canvas(32, 32), 7) is None
    assert nearest_divided(Grid(16, 112), Canvas(112, 32), 7) == Canvas(112, 32)


def test_wan_draws_as_many_tokens_as_its_transformer_sees() -> None:
    # 81 frames are 21 of latents; 480 x 832 pixels are 60 x 104 latents, and two by two of them a token
    assert Grid(16, stride=4).tokens(Canvas(480, 832, 81)) == 21 * 30 * 52
    assert Grid(16).tokens(Canvas(1024, 1024)) == 4096


def test_heads_and_texts_that_do_not_divide_are_refused_with_what_does() -> None:
    check_heads(8, {"transformer": 24})
    check_text(8, "max_sequence_length", 512)
    with pytest.raises(ValueError) as heads:
        check_heads(8, {"transformer": 24, "transformer_2": 12})
    assert str(heads.value) == (
        "distributed.context 8 does not divide the 12 heads of transformer_2; choose 1, 2, 3, 4, 6 or 12"
    )
    with pytest.raises(ValueError) as text:
        check_text(8, "max_sequence_length", 500)
    assert str(text.value) == "model.max_sequence_length 500: distributed.context 8 must divide it; the nearest is 496"
