from dataclasses import replace

from flowfactory import Canvas, SamplingPlan
from flowfactory.flow import FlowSDEConfig, generator

sde = FlowSDEConfig(sde_steps=(0, 1)).build("dynamics")
window = sde.window(steps=4, iteration=0, generator=generator("example"))
plan = SamplingPlan(4, Canvas(512, 512), 4.5, sde, seed=0, iteration=0, stochastic=window)
print(sorted(replace(plan, recorded=plan.stochastic).recorded))
# > [0, 1]
