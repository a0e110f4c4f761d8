from flowfactory import At, hookimpl
from flowfactory.flow import FlowSDEConfig
from flowfactory.testing import learning
from flowfactory_grpo.grpo import GRPOConfig


class Algorithm:
    @hookimpl
    def comparisons(self, experience):
        return ((step, {"reference": At("reference")}) for _, step in experience.replay())


drawn = learning(GRPOConfig(), [1.0, -1.0, 2.0, -2.0], dynamics=FlowSDEConfig().build("dynamics"))
for step, kept in Algorithm().comparisons(drawn.experience):
    print(step.sigma[0].item(), kept)
# > 1.0 {'reference': At(weights='reference', guidance=None)}
# > 0.75 {'reference': At(weights='reference', guidance=None)}
# > 0.5 {'reference': At(weights='reference', guidance=None)}
