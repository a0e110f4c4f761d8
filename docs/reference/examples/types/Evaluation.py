import torch

from flowfactory import Evaluation

weight = torch.ones(1, requires_grad=True)
found = Evaluation(velocity=2 * weight[None])
print(found.velocity.requires_grad, found.detach().velocity)
# > True tensor([[2.]])
