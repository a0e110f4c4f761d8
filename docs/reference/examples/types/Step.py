from torch import tensor

from flowfactory import Conditions, Step
from flowfactory.flow import ODEConfig

conditions = Conditions(({}, {}))
step = Step(tensor([[1.0], [3.0]]), tensor([0.5, 0.25]), conditions, 1.0, ODEConfig().build("dynamics"))
both = Step.concatenate([step, step.rows([1])], Conditions(({}, {}, {})))
print(both.latents.flatten(), both.sigma)
# > tensor([1., 3., 3.]) tensor([0.5000, 0.2500, 0.2500])
