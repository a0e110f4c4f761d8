from torch import tensor

from flowfactory import Conditions
from flowfactory.flow import negative_branch

weight = tensor(2.0, requires_grad=True)
with negative_branch(Conditions(({},), detached=True)):
    without = 3 * weight
print(without)
# > tensor(6.)
