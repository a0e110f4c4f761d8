"""The eyes of GenEval (arXiv:2310.11513): objects by a detector of transformers, their colours by a CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flowfactory import RunError, UserError
from flowfactory.models import check_vocabulary, load_tokenizer, reading
from flowfactory_rewards.dual_encoder import DualEncoder, load_clip
from flowfactory_rewards.geneval_rules import COLORS, Box, Detection
from flowfactory_rewards.reward_model import to_pil
from flowfactory_rewards.weights import from_pretrained, grey, load_config, load_pretrained, refuse_one_answer

CLASS_ALIASES = {
    "airplane": "aeroplane",
    "computer keyboard": "keyboard",
    "computer mouse": "mouse",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
    "tv remote": "remote",
}
"""What some detectors call the classes that GenEval's files call otherwise."""


class Detector:
    """The objects of given classes in pictures, as the detector in ``path`` sees them."""

    def __init__(self, path: str, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoProcessor
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_OBJECT_DETECTION_MAPPING,
            MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING,
        )

        config = load_config(AutoConfig, path)
        self._zero_shot = type(config) in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING
        models = MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING if self._zero_shot else MODEL_FOR_OBJECT_DETECTION_MAPPING
        if type(config) not in models:
            raise UserError(f"{path} holds a model of type {config.model_type!r}, which is no detector that transformers has")
        self._path = path
        self._one_at_a_time = config.model_type.endswith("grounding-dino")
        if self._zero_shot:
            source = f"the tokenizer in {path}"
            self._processor = load_tokenizer(AutoProcessor, path, source)
            check_vocabulary(self._processor, config.text_config.vocab_size, source)
        else:
            self._processor = from_pretrained(AutoImageProcessor, path)
        self._model = load_pretrained(models[type(config)], path, device, dtype)

    def __call__(self, pictures: Tensor, names: Sequence[str], threshold: float) -> list[dict[str, list[Detection]]]:
        """Of each of the pictures [n, 3, H, W] the objects of each class above ``threshold``, in no order.

        RunError: a detector with classes of its own has none of a name.
        """
        if not self._zero_shot:
            inputs = self._processor(to_pil(pictures), return_tensors="pt")
            places: dict[int | None, str] = {place: name for name in names for place in self._class_ids(name)}
            return self._detect(inputs, pictures, places, threshold)
        if self._one_at_a_time:
            # it answers with pieces of the text, which cannot be told apart where names share a word
            alone = [self._detect_zero_shot(pictures, f"{name}.", {None: name}, threshold) for name in names]
            return [{name: found for one in same for name, found in one.items()} for same in zip(*alone, strict=True)]
        return self._detect_zero_shot(pictures, [f"a photo of a {name}" for name in names], dict(enumerate(names)), threshold)

    def _detect_zero_shot(
        self, pictures: Tensor, text: str | list[str], places: Mapping[int | None, str], threshold: float
    ) -> list[dict[str, list[Detection]]]:
        inputs = self._processor(images=to_pil(pictures), text=[text] * len(pictures), return_tensors="pt")
        return self._detect(inputs, pictures, places, threshold)

    def _detect(
        self, inputs: Any, pictures: Tensor, places: Mapping[int | None, str], threshold: float
    ) -> list[dict[str, list[Detection]]]:
        outputs = self._model(**inputs.to(self._model.device, self._model.dtype))
        return self.post_process(outputs, pictures.shape[-2:], places, threshold)

    def post_process(
        self, outputs: Any, size: Sequence[int], places: Mapping[int | None, str], threshold: float
    ) -> list[dict[str, list[Detection]]]:
        """What the detector's ``outputs`` for n pictures of ``size`` (H, W) say is there, by class.

        ``places``: what the numbers of its classes stand for; None stands for all of them.
        """
        reader = (
            self._processor.post_process_grounded_object_detection
            if self._zero_shot
            else self._processor.post_process_object_detection
        )
        results = []
        for answer in reader(outputs, threshold=threshold, target_sizes=[tuple(size)] * len(outputs.logits)):
            found: dict[str, list[Detection]] = {name: [] for name in places.values()}
            numbers = [None] * len(answer["scores"]) if None in places else answer["labels"].tolist()
            for number, score, box in zip(numbers, answer["scores"].tolist(), answer["boxes"].tolist(), strict=True):
                if number in places:
                    found[places[number]].append(Detection(tuple(box), score))
            results.append(found)
        return results

    def _class_ids(self, name: str) -> list[int]:
        labels = self._model.config.id2label
        found = [place for place, label in labels.items() if label in (name, CLASS_ALIASES.get(name))]
        if not found:
            raise RunError(
                f"the detector {self._path} has no class {name!r}; it has {', '.join(sorted(labels.values()))[:200]}"
            )
        return found


class ColorClassifier:
    """The colours of objects, by a CLIP, as the released evaluation finds them: that whose texts are nearest to the crop."""

    def __init__(self, path: str, device: torch.device, dtype: torch.dtype) -> None:
        self._clip: DualEncoder = load_clip(path, path, device, dtype)
        with torch.inference_mode(), reading(path):
            refuse_one_answer(lambda prompt: self._clip.embed_texts([prompt]), path)
            self._clip.embed_images(grey())
        self._known: dict[str, Tensor] = {}

    def __call__(self, picture: Tensor, boxes: Sequence[Box], name: str) -> list[str]:
        """One of COLORS for each of ``boxes`` in the picture [3, H, W], in which there is a thing called ``name``."""
        if name not in self._known:
            texts = (f"a photo of a {{}} {name}", f"a photo of a {{}}-colored {name}", "a photo of a {} object")
            means = [self._clip.embed_texts([text.format(color) for text in texts]).mean(0) for color in COLORS]
            self._known[name] = functional.normalize(torch.stack(means), dim=-1)
        nearest = [(self._clip.embed_images(crop(picture, box)[None]) @ self._known[name].T).argmax() for box in boxes]
        return [COLORS[int(place)] for place in nearest]


def crop(picture: Tensor, box: Box) -> Tensor:
    """The part of the picture [C, H, W] in ``box``, whole pixels and at least one; nothing beyond the picture."""
    bounds = []
    for axis, length in ((0, picture.shape[2]), (1, picture.shape[1])):
        first = min(max(round(box[axis]), 0), length - 1)
        bounds.append(slice(first, max(min(round(box[axis + 2]), length), first + 1)))
    return picture[:, bounds[1], bounds[0]]
