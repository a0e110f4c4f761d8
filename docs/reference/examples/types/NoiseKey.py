import torch

from flowfactory import Canvas, NoiseKey, SamplingPlan
from flowfactory.flow import ODEConfig, noise

keys = (NoiseKey(prompt=3, member=0), NoiseKey(prompt=3, member=1))
plan = SamplingPlan(4, Canvas(64, 64), 1.0, ODEConfig().build("dynamics"), seed=0, iteration=1, keys=keys)
first, second = noise(plan, (16, 8, 8))
print(torch.equal(first, second), torch.equal(second, noise(plan.rows([1]), (16, 8, 8))[0]))
# > False True
