from torch import tensor

from flowfactory import Transition

mean, std = Transition(tensor([[0.5]]), tensor([[0.25]]))
print(mean + std * tensor([[2.0]]))
# > tensor([[1.]])
