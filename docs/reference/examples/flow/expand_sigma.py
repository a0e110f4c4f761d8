import torch

from flowfactory.flow import expand_sigma

print(expand_sigma(torch.tensor([1.0, 0.5]), latents=torch.zeros(2, 4, 8, 8)).shape)
# > torch.Size([2, 1, 1, 1])
