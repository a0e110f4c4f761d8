from flowfactory import Loss, hookimpl
from flowfactory.flow import FlowSDEConfig
from flowfactory.testing import learning
from flowfactory_grpo.grpo import GRPOConfig


class Reinforce:
    @hookimpl
    def update(self, experience, policy):
        for samples, step in experience.replay():
            yield Loss(-samples.advantages * policy.evaluate(step).log_prob)


drawn = learning(GRPOConfig(), [1.0, -1.0, 2.0, -2.0], dynamics=FlowSDEConfig().build("dynamics"))
print([len(loss.values) for loss in Reinforce().update(drawn.experience, drawn.policy)])
# > [4, 4, 4]
