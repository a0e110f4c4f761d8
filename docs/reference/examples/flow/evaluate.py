from torch import tensor

from flowfactory import Conditions, Step
from flowfactory.flow import FlowSDEConfig, evaluate

sde, latents, conditions = FlowSDEConfig(noise_level=1.0).build("dynamics"), tensor([[1.0]]), Conditions(({},))
there = {"next_sigma": tensor([0.25]), "next_latents": tensor([[0.375]])}
found = evaluate(tensor([[1.0]]), Step(latents, tensor([0.5]), conditions, 1.0, sde, **there))
print(found.mean, found.std, found.log_prob)
# > tensor([[0.3750]]) tensor([[0.5000]]) tensor([-0.2258])
