import torch

from flowfactory import Trajectory

latents, sigmas = torch.zeros(2, 4, 8, 8), torch.tensor([1.0, 0.5, 0.0])
drawn = Trajectory(media=torch.full((2, 3, 64, 64), 0.5), latents=latents, sigmas=sigmas)
print(len(drawn.media), len(drawn.sigmas) - 1, drawn.steps)
# > 2 2 ()
