from torch import tensor

from flowfactory.flow import euler

print(euler(tensor([2.0]), tensor([1.0]), sigma=1.0, next_sigma=0.75))
# > tensor([0.5000])
