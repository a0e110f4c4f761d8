"""Names that released checkpoints have, and this version of the classes has not, are read as what they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged import Harm, copy_of, reweighted
from family_cases import CASES
from torch import Tensor

from flowfactory import UserError
from flowfactory.config.component_slots import config_class
from flowfactory.discovery.discover import discover

Weights = Mapping[str, Tensor]
ROW = torch.arange(32)[None]


def renamed(before: str, after: str, **more: Tensor) -> Harm:
    """Names that begin with ``before`` begin with ``after``, and there are ``more``."""

    def change(weights: Weights) -> Weights:
        found = {after + name.removeprefix(before) if name.startswith(before) else name: each for name, each in weights.items()}
        return found | {name.replace("__", "."): each for name, each in more.items()}

    return reweighted(change)


def dropped(*beginnings: str) -> Harm:
    return reweighted(lambda weights: {name: each for name, each in weights.items() if not name.startswith(beginnings)})


CHANGES: list[tuple[str, str, Harm]] = [
    ("flux1", "text_encoder", renamed("", "text_model.", text_model__embeddings__position_ids=ROW)),
    ("flux1", "text_encoder", renamed("", "text_model.", text_projection__weight=torch.ones(32, 32))),
    ("flux1", "text_encoder_2", renamed("shared.", "encoder.embed_tokens.")),
    ("flux1", "text_encoder_2", renamed("", "", decoder__final_layer_norm__weight=torch.ones(32))),
    ("flux2", "text_encoder", dropped("vision_tower.", "multi_modal_projector.")),
    ("flux2", "text_encoder", dropped("language_model.lm_head.", "lm_head.")),
    ("flux2-klein", "text_encoder", dropped("lm_head.")),
    ("z-image", "text_encoder", renamed("", "model.", lm_head__weight=torch.ones(315, 32))),
    ("krea2", "text_encoder", dropped("visual.")),
    ("krea2", "text_encoder", renamed("", "model.", lm_head__weight=torch.ones(315, 32))),
    ("qwen-image", "text_encoder", dropped("lm_head.")),
    ("qwen-image", "text_encoder", dropped("visual.")),
    ("qwen-image-edit", "text_encoder", dropped("lm_head.")),
    ("qwen-image-2.1", "text_encoder", dropped("lm_head.")),
    ("qwen-image-2.1", "text_encoder", dropped("model.visual.")),
    ("qwen-image-2.1-edit", "text_encoder", dropped("lm_head.")),
    ("wan-t2v", "text_encoder", renamed("shared.", "encoder.embed_tokens.")),
    ("wan-t2v", "text_encoder", renamed("", "", decoder__final_layer_norm__weight=torch.ones(32))),
    ("wan-i2v", "image_encoder", renamed("", "vision_model.", vision_model__embeddings__position_ids=ROW)),
    ("wan-i2v", "image_encoder", renamed("", "vision_model.", visual_projection__weight=torch.ones(16, 16))),
    ("wan-flf2v", "image_encoder", renamed("", "vision_model.", visual_projection__weight=torch.ones(16, 16))),
    ("wan-i2v", "transformer", renamed("", "", blocks__0__attn2__norm_added_q__weight=torch.ones(24))),
    ("flux2", "vae", dropped("bn.num_batches_tracked")),
]


def opened(key: str, part: str, folder: Path) -> Any:
    config = config_class(discover().find("model", CASES[key].name)).model_validate({"path": str(folder), "train": "full"})
    return getattr(config.checkpoint.open([part], {"default": torch.float32}), part)


def read_names(key: str, part: str, module: Any) -> dict[str, Tensor]:
    """The weights that make a difference."""
    unread = ("lm_head.", "model.vision_tower.", "model.multi_modal_projector.", "bn.num_batches")
    unread += ("model.visual.", "visual.") if key in ("krea2", "qwen-image", "qwen-image-2.1") else ()
    return {name: each for name, each in module.state_dict().items() if not name.startswith(unread)}


@pytest.mark.parametrize(("key", "part", "change"), CHANGES)
def test_a_released_name_is_read(key: str, part: str, change: Harm, checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy_of(checkpoints(key), tmp_path / "checkpoint")
    expected = read_names(key, part, opened(key, part, folder))
    change(folder / part)
    found = read_names(key, part, opened(key, part, folder))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_edits_pictures_needs_eyes(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy_of(checkpoints("qwen-image-edit"), tmp_path / "checkpoint")
    dropped("visual.")(folder / "text_encoder")
    with pytest.raises(UserError, match=r"text_encoder of .* lacks \d+ weights that \w+ needs, the first model\.visual\."):
        opened("qwen-image-edit", "text_encoder", folder)
