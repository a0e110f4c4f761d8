from flowfactory.testing import learning
from flowfactory_nft.nft import NFTConfig

experience = learning(NFTConfig(), advantages=[1.0, -1.0, 2.0, -2.0], batch_size=3).experience
print([len(batch) for batch in experience.micro_batches()])
print(experience.rows([3, 3, 0]).advantages)
# > [3, 1]
# > tensor([-2., -2.,  1.])
