from torch import nn

from flowfactory import Trainable

modules = {"transformer": nn.Linear(4, 4)}
trainable = Trainable(modules, "full", lora_targets=(), blocks=(), encoding="lengths 1", guided=False)
print(sum(weight.numel() for weight in trainable.modules["transformer"].parameters()))
# > 20
