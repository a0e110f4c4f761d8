import torch

from flowfactory import Canvas, Conditions, SamplingPlan, Trajectory, flow, hookimpl


class Model:
    @hookimpl
    def sample(self, conditions, plan):
        start, sigmas = torch.ones(len(conditions), 1, 2, 2), torch.linspace(1, 0, plan.steps + 1)
        latents, steps = flow.rollout(lambda x, *_: torch.full_like(x, 0.5), start, sigmas, conditions, plan)
        return Trajectory(latents, latents, sigmas, steps)


plan = SamplingPlan(4, Canvas(2, 2), 1.0, flow.ODEConfig().build("dynamics"), seed=0, iteration=0)
print(Model().sample(Conditions(({},)), plan).media.flatten())
# > tensor([0.5000, 0.5000, 0.5000, 0.5000])
