from torch import tensor

from flowfactory.flow import DanceSDEConfig

dance = DanceSDEConfig(noise_level=1.0).build("dynamics")
velocity, latents = tensor([[1.0]]), tensor([[1.0]])
print(dance.transition(velocity, latents, sigma=tensor([[0.5]]), next_sigma=tensor([[0.25]])))
# > Transition(mean=tensor([[0.3750]]), std=tensor([[0.5000]]))
