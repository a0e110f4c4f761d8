from torch import tensor

from flowfactory.rl import optimality

print(optimality(tensor([-9.0, 0.0, 2.5, 5.0]), maximum=5.0))
# > tensor([0.0000, 0.5000, 0.7500, 1.0000])
