from torch import tensor

from flowfactory import Canvas, Conditions, SamplingPlan
from flowfactory.flow import ODEConfig, expand_sigma, rollout


def velocity(latents, sigma, conditions, guidance):
    return (latents - 0.25) / expand_sigma(sigma, latents)  # towards 0.25


plan = SamplingPlan(2, Canvas(8, 8), 1.0, ODEConfig().build("dynamics"), seed=0, iteration=0, recorded=frozenset({1}))
latents, steps = rollout(velocity, tensor([[1.0]]), tensor([1.0, 0.5, 0.0]), Conditions(({},)), plan)
print(latents, steps[0].latents, steps[0].sigma)
# > tensor([[0.2500]]) tensor([[0.6250]]) tensor([0.5000])
