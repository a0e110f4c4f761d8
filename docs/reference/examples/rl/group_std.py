from torch import tensor

from flowfactory.rl import group_std

print(group_std(tensor([1.0, 3.0, 5.0, 5.0]), groups=tensor([0, 0, 1, 1])))
# > tensor([1., 1., 0., 0.], dtype=torch.float64)
