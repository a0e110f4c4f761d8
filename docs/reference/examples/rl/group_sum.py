from torch import tensor

from flowfactory.rl import group_sum

print(group_sum(tensor([1.0, 3.0, 5.0, 9.0]), groups=tensor([0, 0, 1, 1])))
# > tensor([ 4.,  4., 14., 14.])
