import torch

from flowfactory.flow import noise
from flowfactory.testing import learning
from flowfactory_nft.nft import NFTConfig

plan = learning(NFTConfig(), advantages=[1.0, -1.0, 1.0, -1.0]).experience.plan
whole, part = noise(plan, (3, 8, 8)), noise(plan.rows([2, 3]), (3, 8, 8))
print(whole.shape, torch.equal(whole[2:], part))
# > torch.Size([4, 3, 8, 8]) True
