from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowfactory import flow
from flowfactory.data.condition_checks import (
    COMPARED,
    HEAD,
    Encoded,
    check_different,
    check_finite,
    check_negatives,
    choose_compared,
)
from flowfactory.errors import RunError
from flowfactory.types import Prompt

CAT, CATS, DOG, TREE = "a cat", "a cat and a hat", "a dog that sleeps", "two green trees"
TEXTS = (CAT, DOG, TREE)


def noise(key: str, *shape: int) -> Tensor:
    return torch.randn(shape or (6, 4), generator=flow.generator(key))


def encoded(texts: Sequence[str], *entries: dict[str, Tensor], images: Sequence[str] = ()) -> list[Encoded]:
    files = [(Path(image),) for image in images] or [()] * len(texts)
    prompts = [Prompt(text, images=brought) for text, brought in zip(texts, files, strict=True)]
    return list(zip(prompts, entries, strict=True))


def mask(count: int, length: int = 6) -> Tensor:
    return torch.arange(length) < count


def test_other_texts_with_other_conditions_are_let_through() -> None:
    check_different(encoded(TEXTS, *({"embeds": noise(text), "mask": mask(3)} for text in TEXTS)))


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"mask": [mask(2), mask(4), mask(3)]},
        {"mask": [mask(2).long(), mask(4).long(), mask(3).long()]},
        {"mask": [mask(2).float(), mask(4).float(), mask(3).float()]},
        {"length": [torch.tensor(2), torch.tensor(4), torch.tensor(3)]},
        {"ids": [torch.arange(18.0).reshape(6, 3)] * 3},
    ],
)
def test_texts_that_make_no_difference_but_to_the_mask_are_refused(extra: dict[str, list[Tensor]]) -> None:
    entries = [{"embeds": noise("same")} | {name: row[i] for name, row in extra.items()} for i in range(3)]
    with pytest.raises(RunError) as refused:
        check_different(encoded(TEXTS, *entries))
    assert str(refused.value) == (
        "preflight: the conditions of 'a cat' and 'a dog that sleeps', and 1 more prompts, are the same, so that no prompt is "
        "seen; look at the tokenizer and the text encoder of model.path, and at how many tokens of a prompt they keep"
    )


def test_longer_conditions_that_begin_with_shorter_ones_are_the_same() -> None:
    unknown = noise("unknown", 9, 4)
    with pytest.raises(RunError, match="are the same, so that no prompt is seen"):
        check_different(encoded(TEXTS, {"embeds": unknown[:2]}, {"embeds": unknown[:4]}, {"embeds": unknown[:3]}))


def test_of_texts_that_begin_alike_so_may_the_conditions() -> None:
    causal = noise("causal", 9, 4)
    check_different(encoded((CAT, CATS), {"embeds": causal[:2]}, {"embeds": causal[:5]}))


def test_one_of_two_encoders_that_reads_nothing_is_named() -> None:
    entries = [{"embeds": noise("same"), "pooled": noise(text, 4), "ids": torch.zeros(6, 3)} for text in TEXTS]
    with pytest.raises(RunError, match=r"^preflight: 'embeds' in the conditions of 'a cat' and .* is the same for all; look"):
        check_different(encoded(TEXTS, *entries))


def test_texts_that_begin_alike_may_be_cut_to_the_same_in_one_encoder() -> None:
    texts = [f"a photograph of the sea, {end}" for end in ("calm", "rough", "at night")]
    check_different(encoded(texts, *({"embeds": noise(text), "pooled": noise("same", 4)} for text in texts)))


def test_other_pictures_do_not_hide_that_the_text_is_not_read() -> None:
    entries = [{"embeds": noise("same"), "image_0": noise(f"picture {i}")} for i in range(3)]
    with pytest.raises(RunError, match=r"'embeds' in the conditions of .* is the same for all"):
        check_different(encoded(TEXTS, *entries, images=["a", "b", "c"]))
    entries = [{"embeds": noise("same"), "image_0": noise(picture)} for picture in "aab"]
    with pytest.raises(RunError, match="are the same, so that no prompt is seen"):
        check_different(encoded(TEXTS, *entries, images=["a", "a", "b"]))


def test_one_picture_for_all_prompts_may_be_the_same() -> None:
    entries = [{"embeds": noise(text), "image_0": noise("picture")} for text in TEXTS]
    check_different(encoded(TEXTS, *entries, images=["a", "a", "a"]))


def test_the_same_text_tells_nothing() -> None:
    check_different(encoded((CAT, "A  cat "), {"embeds": noise("same")}, {"embeds": noise("same")}))
    check_different(encoded((CAT,), {"embeds": noise("same")}))


def test_a_negative_prompt_with_the_conditions_of_its_prompt_is_refused() -> None:
    prompts = encoded((CAT, DOG), {"embeds": noise("a"), "video": noise("v")}, {"embeds": noise("b"), "video": noise("w")})
    same = encoded(("", ""), {"embeds": noise("a")}, {"embeds": noise("b")})
    with pytest.raises(RunError) as refused:
        check_negatives(prompts, same)
    assert str(refused.value) == (
        "preflight: the negative prompt '' has the conditions of the prompt 'a cat', so that guidance does nothing; look at "
        "the tokenizer and the text encoder of model.path, and at how many tokens of a prompt they keep"
    )
    check_negatives(prompts, encoded(("", ""), {"embeds": noise("empty")}, {"embeds": noise("empty")}))
    check_negatives(prompts, encoded((CAT, DOG), *(entry for _, entry in same)))  # that is what the user wrote


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_tensor_that_is_not_finite_is_named_with_its_prompt(value: float) -> None:
    image = noise("picture").bfloat16()
    image[2, 1] = value
    with pytest.raises(RunError) as refused:
        check_finite(Prompt(CAT, images=(Path("a.png"),)), {"embeds": noise("a"), "mask": mask(3), "image_0": image})
    assert str(refused.value) == (
        "the model's encode made 'image_0' that is not finite, for the prompt 'a cat'; look at the weights and the dtype of "
        "its encoders, and the prompt's files"
    )


def test_those_are_compared_that_differ_early() -> None:
    long = [Prompt(f"{'x' * HEAD} {i}") for i in range(3)]
    assert choose_compared(long) == long
    assert choose_compared([*long, Prompt("y")]) == [long[0], Prompt("y")]
    assert len(choose_compared([Prompt(str(i)) for i in range(100)])) == COMPARED
