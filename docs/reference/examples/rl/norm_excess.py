from torch import tensor

from flowfactory.rl import norm_excess

print(norm_excess(tensor([[3.0, 3.0], [0.5, 0.5]]), tensor([[1.0, 1.0], [1.0, 1.0]])))
# > tensor([4., 0.])
