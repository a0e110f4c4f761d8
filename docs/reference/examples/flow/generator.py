import torch

from flowfactory.flow import generator

first, again = (torch.rand(1, generator=generator("mine", 7)) for _ in range(2))
other = torch.rand(1, generator=generator("mine", 8))
print(torch.equal(first, again), torch.equal(first, other))
# > True False
