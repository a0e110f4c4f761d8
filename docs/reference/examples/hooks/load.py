import torch
from torch import nn

from flowfactory import Runtime, Trainable, hookimpl


class Model:
    @hookimpl
    def load(self, runtime):
        transformer = nn.Linear(4, 4, dtype=runtime.dtype)
        return Trainable({"transformer": transformer}, "full", (), (), "lengths 1", guided=False)


print(Model().load(Runtime(torch.device("cpu"), torch.float32)).modules)
# > {'transformer': Linear(in_features=4, out_features=4, bias=True)}
