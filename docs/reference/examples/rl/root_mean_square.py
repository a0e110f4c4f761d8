from torch import tensor

from flowfactory.rl import root_mean_square

print(root_mean_square(tensor([[1.0, 7.0], [3.0, 3.0]])))
# > tensor([5., 3.])
