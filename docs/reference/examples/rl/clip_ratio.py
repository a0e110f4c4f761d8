from torch import tensor

from flowfactory.rl import clip_ratio

loss = clip_ratio(tensor([1.5, 1.1]), tensor([2.0, 2.0]), clip_range=0.25)
print(loss.values, loss.cuts["clip_fraction"])
# > tensor([-2.5000, -2.2000]) tensor([1., 0.])
