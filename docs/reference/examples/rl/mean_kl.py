from torch import tensor

from flowfactory.rl import mean_kl

print(mean_kl(tensor([[1.0, 3.0]]), tensor([[1.0, 1.0]]), std=tensor([[0.5]])))
# > tensor([4.])
