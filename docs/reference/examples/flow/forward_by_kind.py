from torch import tensor

from flowfactory.flow import forward_by_kind


def velocity(rows, kind):
    print(kind, list(rows))
    return tensor([[float(row)] for row in rows])


print(forward_by_kind(["wide", "tall", "wide"], velocity).flatten())
# > wide [0, 2]
# > tall [1]
# > tensor([0., 1., 2.])
