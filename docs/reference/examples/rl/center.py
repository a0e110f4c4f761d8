from torch import tensor

from flowfactory.rl import center

print(center(tensor([1.0, 3.0, 5.0, 9.0]), groups=tensor([0, 0, 1, 1])))
# > tensor([-1.,  1., -2.,  2.], dtype=torch.float64)
