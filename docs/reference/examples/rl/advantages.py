from torch import tensor

from flowfactory.rl import advantages

rewards = {"sharp": tensor([1.0, 3.0, 7.0, 7.0]), "seen": tensor([0.0, 9.0, 0.0, 9.0])}
print(advantages(rewards, {"sharp": 1.0, "seen": 0.0}, groups=tensor([0, 0, 1, 1])))
# > tensor([-1.,  1.,  0.,  0.])
