import torch

from flowfactory.rewards import to_pixels

print(to_pixels(torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1)))
# > [[[  0 128 255]]]
