from torch import tensor

from flowfactory.rewards import rows_by_group

print(rows_by_group([0, 2, 3], tensor([5, 5, 9, 5])))
# > [[0, 3], [2]]
