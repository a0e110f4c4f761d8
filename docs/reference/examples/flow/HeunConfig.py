from torch import tensor

from flowfactory.flow import HeunConfig

solver = HeunConfig().build("dynamics").make_solver()
latents = tensor([[1.0]])  # where the velocity is the latents themselves
print(solver.step(latents, latents, 1.0, 0.5, ask=lambda arrived, sigma: arrived))
# > tensor([[0.6250]])
