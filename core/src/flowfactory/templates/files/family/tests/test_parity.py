import pytest
from flowfactory.testing import check_against_pipeline, check_encode_media

from flowfactory_newname.model import NewNameConfig

PROMPTS = ("cat", "a photo of a red circle")


@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_it_draws_what_its_pipeline_draws(checkpoint: str, guidance: float, size: tuple[int, int]) -> None:
    config = NewNameConfig(path=checkpoint, train="full", max_sequence_length=16)
    # Change: what the pipeline's call takes besides
    check_against_pipeline(config, PROMPTS, size, guidance, negative="blurry square", max_sequence_length=16)


def test_media_are_encoded_the_other_way_round(checkpoint: str) -> None:
    check_encode_media(NewNameConfig(path=checkpoint, train="full"), (48, 32))
