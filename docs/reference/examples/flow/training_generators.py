import torch

from flowfactory.flow import training_generators
from flowfactory.testing import learning
from flowfactory_nft.nft import NFTConfig

experience = learning(NFTConfig(), advantages=[1.0, -1.0, 1.0, -1.0]).experience
first, *_ = training_generators(experience, experience.plan.keys, "noise")
again, *_ = training_generators(experience.rows([0]), experience.rows([0]).plan.keys, "noise")
print(torch.equal(torch.randn(3, generator=first), torch.randn(3, generator=again)))
# > True
