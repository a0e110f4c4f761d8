from dataclasses import replace
from typing import ClassVar

from flowfactory.models import Family
from flowfactory.testing import check_against_pipeline
from flowfactory_tiny.tiny import TinyConfig


class Flipped(TinyConfig):
    family: ClassVar[Family] = replace(TinyConfig.family, velocity=lambda *given: -TinyConfig.family.velocity(*given))


print(list(check_against_pipeline(TinyConfig(train="full"), guidance=3.0, max_sequence_length=1).media.shape))
# > [2, 3, 32, 32]
try:
    check_against_pipeline(Flipped(train="full"), max_sequence_length=1)
except AssertionError as error:
    print(str(error).partition(": ")[2])
# > the velocity has the opposite sign
