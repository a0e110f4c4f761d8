from torch import tensor

from flowfactory import Loss
from flowfactory.rl import guard_norm

velocity, reference = tensor([[3.0, 3.0], [0.5, 0.5]]), tensor([[1.0, 1.0], [1.0, 1.0]])
loss = guard_norm(Loss(tensor([1.0, 1.0])), 0.5, velocity, reference)
print(loss.values, loss.metrics["velocity_norm"])
# > tensor([3., 1.]) tensor([3.0000, 0.5000])
