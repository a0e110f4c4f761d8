import torch

from flowfactory import Samples

media = torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1).expand(3, 3, 8, 8)
samples = Samples(media, ("dark", "grey", "light"), torch.tensor([0, 1, 2]), ({}, {}, {}))
print(samples.rows([2, 0]).prompts, samples.media.flatten(1).mean(1))
# > ('light', 'dark') tensor([0.0000, 0.5000, 1.0000])
