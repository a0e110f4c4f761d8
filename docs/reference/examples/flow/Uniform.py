from torch import tensor

from flowfactory.flow import Uniform, generator

sigmas = Uniform(count=4).sigmas(tensor([1.0, 0.0]), generator("example"))
print((sigmas * 4).floor().tolist())
# > [0.0, 1.0, 2.0, 3.0]
