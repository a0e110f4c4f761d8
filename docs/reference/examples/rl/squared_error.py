from torch import tensor

from flowfactory.rl import squared_error

estimate, target = tensor([[1.0, 3.0]]), tensor([[0.0, 0.0]])
print(squared_error(estimate, target), squared_error(estimate, target, scaled=True))
# > tensor([5.]) tensor([2.5000])
