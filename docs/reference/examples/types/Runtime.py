import torch

from flowfactory import Runtime

runtime = Runtime(device=torch.device("cpu"), dtype=torch.float32)
print(runtime.in_turn(lambda first: "download" if first else "find it"), runtime.context)
# > download 1
