from torch import allclose

from flowfactory.flow import Uniform, expand_sigma, noised_batches
from flowfactory.testing import learning
from flowfactory_nft.nft import NFTConfig

experience = learning(NFTConfig(), advantages=[1.0, -1.0, 1.0, -1.0]).experience
[batch] = noised_batches(experience, Uniform(count=1))
clean, sigma = batch.samples.latents, expand_sigma(batch.step.sigma, batch.target)
print(len(batch), allclose(batch.step.latents, clean + sigma * batch.target))
# > 4 True
