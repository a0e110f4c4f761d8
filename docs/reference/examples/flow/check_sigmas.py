from torch import tensor

from flowfactory import UserError
from flowfactory.flow import check_sigmas

check_sigmas(tensor([1.0, 0.5, 0.0]), steps=2)
try:
    check_sigmas(tensor([1.0, 0.5]), steps=1)
except UserError as error:
    print(error)
# > model: its sigmas end at 0.5; they must end at 0, clean latents
