from torch import tensor

from flowfactory.rl import normalize

rewards, groups = tensor([1.0, 3.0, 5.0, 9.0]), tensor([0, 0, 1, 1])
print(normalize(rewards, groups))
# > tensor([-1.,  1., -1.,  1.], dtype=torch.float64)
