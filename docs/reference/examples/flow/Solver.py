from torch import tensor

from flowfactory.flow import Solver, euler


class Plain:
    def step(self, velocity, latents, sigma, next_sigma, ask):
        return euler(velocity, latents, sigma, next_sigma)


solver: Solver = Plain()
print(solver.step(tensor([2.0]), tensor([1.0]), 1.0, 0.75, ask=None))
# > tensor([0.5000])
