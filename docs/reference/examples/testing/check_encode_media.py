from dataclasses import replace
from typing import ClassVar

from flowfactory.models import Family, posterior_mean
from flowfactory.testing import check_encode_media
from flowfactory_tiny.tiny import TinyConfig


class Unscaled(TinyConfig):
    family: ClassVar[Family] = replace(TinyConfig.family, encode_media=posterior_mean)


print([list(tensor.shape) for tensor in check_encode_media(TinyConfig(train="full"), (32, 32))])
# > [[2, 3, 32, 32], [2, 8, 8, 8]]
try:
    check_encode_media(Unscaled(train="full"), (32, 32))
except AssertionError as error:
    print(str(error).partition(",")[0])
# > decode gives the VAE other latents than encode_media got of it
