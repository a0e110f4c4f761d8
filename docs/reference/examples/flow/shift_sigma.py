from torch import tensor

from flowfactory.flow import shift_sigma

print(shift_sigma(tensor([0.0, 0.5, 1.0]), shift=3.0))
# > tensor([0.0000, 0.7500, 1.0000])
