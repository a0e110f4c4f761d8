from torch import tensor

from flowfactory.flow import LogitNormal, generator

sigmas = LogitNormal(count=4, std=0.5).sigmas(tensor([1.0, 0.0]), generator("example"))
print((sigmas > 0.5).tolist())
# > [False, False, True, True]
