from torch import tensor

from flowfactory.flow import log_normal

print(log_normal(tensor([[0.0, 1.0]]), mean=tensor([[0.0, 0.0]]), std=tensor([[1.0]])))
# > tensor([-1.1689])
