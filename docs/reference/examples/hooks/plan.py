from dataclasses import replace

from flowfactory import Canvas, SamplingPlan, flow, hookimpl


class Algorithm:
    @hookimpl
    def plan(self, iteration, plan):
        return replace(plan, recorded=plan.stochastic, means=True)


sde, window = flow.FlowSDEConfig().build("dynamics"), frozenset({0, 2})
print(sorted(Algorithm().plan(0, SamplingPlan(4, Canvas(8, 8), 1.0, sde, 0, 0, stochastic=window)).recorded))
# > [0, 2]
