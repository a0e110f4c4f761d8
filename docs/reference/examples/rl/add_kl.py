from types import SimpleNamespace

from torch import tensor

from flowfactory import Loss
from flowfactory.rl import add_kl

samples = SimpleNamespace(kl_gate=None, kl_coefficient=None)
loss = add_kl(Loss(tensor([1.0, 2.0])), 0.5, samples, tensor([0.25, 1.0]))
print(loss.values, loss.terms)
# > tensor([1.1250, 2.5000]) {'kl': tensor([0.2500, 1.0000])}
