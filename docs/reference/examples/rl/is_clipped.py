from torch import tensor

from flowfactory.rl import is_clipped

ratio, advantage = tensor([1.5, 1.5, 0.5]), tensor([2.0, -2.0, -2.0])
print(is_clipped(ratio, advantage, clip_range=(0.6, 0.25)))
# > tensor([1., 0., 0.])
