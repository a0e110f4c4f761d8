from torch import tensor

from flowfactory.flow import Discrete, generator

times = Discrete(count=2, initial=False, low=0.4)
sigmas = times.sigmas(tensor([1.0, 0.75, 0.5, 0.25, 0.0]), generator("example"))
print(sigmas.sort().values)
# > tensor([0.5000, 0.7500])
