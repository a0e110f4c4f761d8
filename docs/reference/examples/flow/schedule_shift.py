import torch

from flowfactory.flow import schedule_shift, shift_sigma

print(round(schedule_shift(shift_sigma(torch.linspace(1, 0, 11), 3.0)), 4))
# > 3.0
