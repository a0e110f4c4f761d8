from torch import tensor

from flowfactory import hookimpl


class Model:
    @hookimpl
    def encode_media(self, media):
        return 4 * media - 2  # where sample decodes by latents / 4 + 0.5


print(Model().encode_media(tensor([[[[0.0, 0.5, 1.0]]]])).flatten())
# > tensor([-2.,  0.,  2.])
