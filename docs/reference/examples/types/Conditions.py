import torch

from flowfactory import Conditions

short, long = {"text": torch.ones(2, 16)}, {"text": torch.ones(3, 16)}
text, theirs = Conditions((short, long)).pad("text")
print(text.shape, theirs.tolist())
# > torch.Size([2, 3, 16]) [[True, True, False], [True, True, True]]
