from torch import tensor

from flowfactory import Conditions, Step, flow, hookimpl


class Model:
    @hookimpl
    def log_prob(self, step):
        return flow.evaluate(0.5 * step.latents, step)  # the transformer's velocity


step = Step(tensor([[2.0]]), tensor([0.5]), Conditions(({},)), 1.0, flow.ODEConfig().build("dynamics"))
print(Model().log_prob(step).velocity)
# > tensor([[1.]])
