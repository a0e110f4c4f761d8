"""Figures of pictures and videos that need no weights: collapse and artefacts show in them, whatever the reward says.

Pictures are [N, C, H, W] in [0, 1], of any number of channels: of three and more the first three are red, green and blue, of
fewer the first is grey. Everything is float32, and one figure a picture, [N].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from flowfactory.data.media import to_pixels

EDGE = 0.1
"""The gradient of luma, from one pixel to the next, from which on a pixel is part of an edge."""
LEVELS = 8
"""Of each channel, in the colour entropy."""
QUALITY = 85
"""Of the JPEG, as Pillow counts it."""


def as_colours(pictures: Tensor) -> Tensor:
    """The pictures in float32 with three channels or one."""
    return pictures[:, : 3 if pictures.shape[1] >= 3 else 1].float()


def shrink(pictures: Tensor, most: int) -> Tensor:
    """The pictures at most ``most`` pixels high and wide, averaged over areas; as they are where they are no larger."""
    height, width = pictures.shape[-2:]
    if max(height, width) <= most:
        return pictures
    return adaptive_avg_pool2d(pictures, (min(height, most), min(width, most)))


def crop(pictures: Tensor, most: int) -> Tensor:
    """The centre of the pictures, at most ``most`` pixels high and wide, whose pixels are those of the whole."""
    top, left = (max(0, (side - most) // 2) for side in pictures.shape[-2:])
    return pictures[..., top : top + most, left : left + most]


def luma(colours: Tensor) -> Tensor:
    """Luma [N, H, W] by ITU-R BT.601, as JPEG has it: 0.299 R + 0.587 G + 0.114 B; grey is its own."""
    if colours.shape[1] == 1:
        return colours[:, 0]
    return (colours * colours.new_tensor((0.299, 0.587, 0.114)).view(-1, 1, 1)).sum(1)


def mean_luma(colours: Tensor) -> Tensor:
    """The mean of :func:`luma`."""
    return luma(colours).flatten(1).mean(1)


def saturation(colours: Tensor) -> Tensor:
    """The saturation of HSV, a pixel's weight being its value: sum of (max - min) over sum of max; 0 of black and of grey."""
    most, least = colours.amax(1).flatten(1).sum(1), colours.amin(1).flatten(1).sum(1)
    return torch.where(most > 0, (most - least) / most.clamp_min(torch.finfo(torch.float32).tiny), 0.0)


def edge_density(grey: Tensor) -> Tensor:
    """The share of the pixels of luma ``grey`` [N, H, W] from which it changes by more than EDGE to the right and below."""
    if min(grey.shape[-2:]) < 2:
        return grey.new_zeros(len(grey))
    here = grey[:, :-1, :-1]
    gradient = (grey[:, :-1, 1:] - here).square() + (grey[:, 1:, :-1] - here).square()
    return (gradient > EDGE**2).float().flatten(1).mean(1)


def colour_entropy(colours: Tensor) -> Tensor:
    """Bits: the Shannon entropy of the colours, each channel in LEVELS equal steps; 9 at the most, 3 of grey."""
    levels = (colours * LEVELS).long().clamp_(0, LEVELS - 1)
    code = levels[:, 0]
    for channel in range(1, levels.shape[1]):
        code = code * LEVELS + levels[:, channel]
    bins = LEVELS ** levels.shape[1]
    offset = bins * torch.arange(len(code), device=code.device)[:, None]
    counts = torch.bincount((code.flatten(1) + offset).flatten(), minlength=bins * len(code)).view(len(code), bins)
    share = counts.float() / counts.sum(1, keepdim=True)
    entropy: Tensor = torch.special.entr(share).sum(1)
    return entropy / math.log(2)


def jpeg_bytes(colours: Tensor) -> list[float]:
    """Bytes of each picture as a JPEG of QUALITY, by its number of pixels; those of the file's head are among them."""
    found = []
    for picture in to_pixels(colours):
        file = BytesIO()
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file, format="JPEG", quality=QUALITY)
        found.append(len(file.getvalue()) / (picture.shape[0] * picture.shape[1]))
    return found


def has_grid(pictures: Tensor, period: int | None) -> bool:
    """Whether pictures [..., H, W] are large enough, two cells each way, to tell a pattern of ``period`` pixels in them."""
    return period is not None and period > 1 and min(pictures.shape[-2:]) >= 2 * period


def grid_energy(grey: Tensor, period: int) -> Tensor:
    """The share of the spectral energy of luma ``grey`` [N, H, W], but for its mean, at the frequencies k / period both ways.

    Grids and checkerboards are there that a decoder leaves which makes ``period`` pixels each way of one place of the latents.
    By Parseval it is the variance of the mean cell of so many pixels, by that of all; no transform is needed. 0 of one colour.
    """
    count, height, width = grey.shape
    rows, columns = height // period, width // period
    whole = grey[:, : rows * period, : columns * period]
    cell = whole.reshape(count, rows, period, columns, period).mean((1, 3))
    variance = whole.flatten(1).var(1, correction=0)
    # what rounding leaves of one colour is no pattern
    return torch.where(variance > 1e-10, cell.flatten(1).var(1, correction=0) / variance.clamp_min(1e-10), 0.0)


def pairwise_distance(pictures: Tensor) -> Tensor:
    """The mean over all pairs of the root mean square distance of ``pictures`` [M, ...], a number; M is at least 2."""
    return torch.nn.functional.pdist(pictures.flatten(1)).mean() / math.sqrt(pictures[0].numel())


def frame_windows(count: int, most: int) -> Sequence[range]:
    """At most ``most`` evenly spread runs of three of ``count`` frames; of one or two frames, all of them."""
    if count < 3:
        return [range(count)]
    number = min(most, count // 3)
    starts = [round(i * (count - 3) / max(1, number - 1)) for i in range(number)]
    return [range(start, start + 3) for start in starts]


def frame_difference(runs: Tensor) -> Tensor:
    """The mean absolute difference of neighbouring frames in ``runs`` [N, F, ...] of at least two."""
    return (runs[:, 1:] - runs[:, :-1]).abs().flatten(1).mean(1)


def flicker(runs: Tensor) -> Tensor:
    """The mean absolute second difference of frames in ``runs`` [N, F, ...] of at least three: what goes to and fro.

    0 of what changes steadily.
    """
    return (runs[:, 2:] - 2 * runs[:, 1:-1] + runs[:, :-2]).abs().flatten(1).mean(1)
