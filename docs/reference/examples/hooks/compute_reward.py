import torch

from flowfactory import Samples, hookimpl


class Brightness:
    @hookimpl
    def compute_reward(self, samples):
        return {"brightness": samples.media.flatten(1).mean(1)}


media = torch.tensor([0.25, 0.75]).reshape(2, 1, 1, 1).expand(2, 3, 8, 8)
print(Brightness().compute_reward(Samples(media, ("a cat", "a cat"), torch.tensor([0, 0]), ({}, {}))))
# > {'brightness': tensor([0.2500, 0.7500])}
