from torch import tensor

from flowfactory import Dynamics
from flowfactory.flow import FlowSDEConfig, generator

dynamics: Dynamics = FlowSDEConfig(noise_level=0.7).build("dynamics")
print(sorted(dynamics.window(steps=4, iteration=0, generator=generator("example"))))
# > [0, 1, 2]
mean, std = dynamics.transition(tensor([[2.0]]), tensor([[1.0]]), tensor([[0.5]]), tensor([[0.25]]))
print(mean, std)  # spread 0.7; mean 1 + (2 + 0.49 (1 + 0.5 2)) (-0.25), std 0.7 sqrt(0.25)
# > tensor([[0.2550]]) tensor([[0.3500]])
