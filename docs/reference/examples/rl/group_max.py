from torch import tensor

from flowfactory.rl import group_max

print(group_max(tensor([1.0, 3.0, 5.0, 9.0]), groups=tensor([7, 7, 2, 2])))
# > tensor([3., 3., 9., 9.])
