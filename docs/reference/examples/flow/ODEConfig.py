from torch import tensor

from flowfactory.flow import ODEConfig

ode = ODEConfig().build("dynamics")
velocity, latents = tensor([[2.0]]), tensor([[1.0]])
print(ode.transition(velocity, latents, sigma=tensor([[0.5]]), next_sigma=tensor([[0.25]])))
# > Transition(mean=tensor([[0.5000]]), std=tensor([[0.]]))
