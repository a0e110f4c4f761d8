"""Text in pictures, read by optical character recognition."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from flowfactory import ComponentConfig, Samples, UserError, hookimpl
from flowfactory.rewards import check_prompts, load_shared, to_pixels
from flowfactory_rewards.dependencies import missing_module, require
from flowfactory_rewards.frame_sampling import sample_frames
from flowfactory_rewards.prompt_checks import parse_samples
from flowfactory_rewards.quotations import find_quotations

if TYPE_CHECKING:
    from rapidocr import RapidOCR

    from flowfactory import RunConfig

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")  # Chinese and Japanese: a sign each
_STRAIGHT = str.maketrans("‘’“”", "''\"\"")
MOST_TEXTS = 8
"""Texts of one prompt; which words are whose is tried out, and takes 2 to this power as long."""


class OcrConfig(ComponentConfig):
    """How much of the wanted text is written in the picture, read by RapidOCR; in [0, 1], of a video the mean over frames.

    A wanted text scores ``max(0, 1 - edits / characters)`` by its Levenshtein distance to what is read and its own length;
    several texts score their mean. Texts are what a prompt has in quotation marks, or its metadata ``text``, one or a list.
    The reward is that of Flow-GRPO (arXiv:2505.05470), for any number of texts.
    """

    known_as = ("text", "text-rendering")

    starter_prompts = (
        {"prompt": 'a neon sign that says "OPEN LATE" above a noodle shop'},
        {"prompt": 'a poster of a whale that says "THE DEEP"'},
        {"prompt": 'a birthday cake with "HAPPY 40" in red icing'},
        {"prompt": 'a chalkboard on which "Soup of the day" is written'},
        {"prompt": 'a wooden signpost that points to "Harbour"'},
        {"prompt": 'a tote bag printed with "Read more books"'},
    )

    free_to_change = ("threads",)

    checkpoint_licences: ClassVar[Mapping[str, str]] = {"PP-OCRv6, in the package rapidocr": "Apache-2.0"}

    case: bool = Field(False, description="whether capital and small letters differ")
    spaces: bool = Field(False, description="whether spaces between words count as characters")
    only: bool = Field(False, description="whether characters of other text count as edits, divided by all that is wanted")
    frames: int = Field(4, ge=1, le=10_000, description="of a video that are looked at, evenly spread; its score is their mean")
    resolution: int = Field(
        256, ge=32, le=8192, description="pixels that the shorter side has at least when text is looked for"
    )
    threads: int = Field(1, ge=1, le=1000, description="of the processor that read; small pictures are read fastest by one")

    def check(self, run: RunConfig) -> None:
        """Every prompt says what is to be written."""
        check_prompts(run, self, lambda prompt: parse_texts(prompt.text, prompt.metadata))

    def weight_bytes(self) -> dict[str, int]:
        return {}

    def lacking(self) -> str | None:
        return missing_module("ocr", "rapidocr", "onnxruntime", "rapidfuzz")

    def build(self, label: str) -> Ocr:
        require(self)
        return Ocr(label, self)


def parse_texts(prompt: str, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts that are to be written: metadata ``text``, else what ``prompt`` has in quotation marks, in order.

    UserError: there is none, there are too many, or ``text`` is neither text nor a list of texts.
    """
    given = metadata.get("text")
    texts = [given] if isinstance(given, str) else given
    if texts is None:
        texts = [text for text in find_quotations(prompt) if text.strip()]
        if not texts:
            raise UserError(f"{prompt[:60]!r} has no text to read; put it in quotation marks, or into 'text' of a .jsonl file")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{prompt[:60]!r} has 'text' {given!r}; expected a text or a list of texts")
    if len(texts) > MOST_TEXTS:
        raise UserError(f"{prompt[:60]!r} has {len(texts)} texts to read, and {MOST_TEXTS} are the most")
    return tuple(texts)


def split_words(text: str, case: bool) -> list[str]:
    """The words of ``text`` in compatibility form (NFKC) with straight quotation marks, in small letters unless ``case``."""
    plain = unicodedata.normalize("NFKC", text).translate(_STRAIGHT)
    return _WORD.findall(plain if case else plain.casefold())


def score_lines(
    lines: Sequence[str], texts: Sequence[str], case: bool = False, spaces: bool = False, only: bool = False
) -> float:
    """How well ``lines``, what is read in reading order, have ``texts`` in them, in [0, 1].

    A text is compared with consecutive words, within a line or across lines. Each word belongs to one text at most, so that
    a text wanted twice must be written twice, and the words are dealt so that the mean of the scores is highest, and then
    so that the fewest characters are left over. Texts may be found in any order.
    """
    between = " " if spaces else ""
    read = [word for line in lines for word in split_words(line, case)]
    goals = [between.join(split_words(text, case)) for text in texts]
    everything = 2 ** len(goals) - 1  # a bit for each text
    # best[start][missing]: the sum of the scores of the missing texts and minus the characters left over, from a word on
    best = [[(0.0, 0)] * (everything + 1)]
    for start in reversed(range(len(read))):
        runs = [
            (1 << i, end, similar) for i, goal in enumerate(goals) for end, similar in _match_runs(read, start, goal, between)
        ]
        after = best[0]
        row = []
        for missing in range(everything + 1):
            choices = [(after[missing][0], after[missing][1] - len(read[start]))]
            for bit, end, similar in runs:
                if bit & missing:
                    found, left = best[end - start - 1][missing ^ bit]
                    choices.append((found + similar, left))
            row.append(max(choices))
        best.insert(0, row)
    found, left = best[0][everything]
    surplus = -left / sum(map(len, goals)) if only else 0.0
    return float(max(0.0, found / len(goals) - surplus))


def _match_runs(read: Sequence[str], start: int, goal: str, between: str) -> Iterator[tuple[int, float]]:
    """Where runs of words from ``start`` on end, and how similar they are to ``goal``, in (0, 1]."""
    from rapidfuzz.distance import Levenshtein

    run = ""
    for end in range(start + 1, len(read) + 1):
        run += (between if run else "") + read[end - 1]
        if len(run) >= 2 * len(goal):  # as many edits as characters, and more with every further word
            return
        similar = 1 - float(Levenshtein.distance(run, goal)) / len(goal)
        if similar > 0:
            yield end, similar


class Ocr:
    """Each picture by itself, on the processor; one reader for all labels with the same resolution and threads."""

    pointwise = True

    def __init__(self, label: str, config: OcrConfig) -> None:
        self.label, self._config = label, config
        self._reader: RapidOCR | None = None
        self._score = partial(score_lines, case=config.case, spaces=config.spaces, only=config.only)

    @hookimpl
    def prepare_reward(self, device: torch.device) -> None:
        """Read the weights, which are part of RapidOCR's package."""
        self._reader = load_shared(_load_reader, self._config.resolution, self._config.threads)

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``. RunError: a prompt has no text to read."""
        if self._reader is None:
            self.prepare_reward(samples.media.device)
        texts = parse_samples(samples, parse_texts)
        scores = []
        for clip, goals in zip(to_pixels(sample_frames(samples.media, self._config.frames)), texts, strict=True):
            scores.append(sum(self._score(self._read_lines(frame), goals) for frame in clip) / len(clip))
        return {self.label: torch.tensor(scores)}

    def _read_lines(self, picture: np.ndarray) -> Sequence[str]:
        assert self._reader is not None
        backwards = np.broadcast_to(picture, (*picture.shape[:2], 3))[..., ::-1]  # blue first, as OpenCV has it
        return self._reader(np.ascontiguousarray(backwards), use_cls=False).txts or ()


def _load_reader(resolution: int, threads: int) -> RapidOCR:
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Det.limit_side_len": resolution,
            "Det.limit_type": "min",
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "Global.log_level": "error",
        }
    )
