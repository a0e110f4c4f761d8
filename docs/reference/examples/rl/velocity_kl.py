from torch import tensor

from flowfactory.rl import velocity_kl

print(velocity_kl(tensor([[1.0, 3.0]]), tensor([[1.0, 1.0]])))
# > tensor([2.])
