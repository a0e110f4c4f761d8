from torch import tensor

from flowfactory import Loss

loss = Loss(tensor([1.0, 2.0])).add_term("kl", 0.5, tensor([0.25, 1.0]))
print(loss.values, loss.terms)
# > tensor([1.1250, 2.5000]) {'kl': tensor([0.2500, 1.0000])}
