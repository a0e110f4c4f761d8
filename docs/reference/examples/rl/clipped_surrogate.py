from torch import tensor

from flowfactory.rl import clipped_surrogate

ratio, advantage = tensor([1.5, 1.5, 0.5]), tensor([2.0, -2.0, -2.0])
print(clipped_surrogate(ratio, advantage, clip_range=0.25))
# > tensor([-2.5000,  3.0000,  1.5000])
