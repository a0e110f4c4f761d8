from flowfactory.flow import Uniform, noised_batches
from flowfactory.testing import learning
from flowfactory_nft.nft import NFTConfig

experience = learning(NFTConfig(), advantages=[1.0, -1.0, 1.0, -1.0]).experience
for batch in noised_batches(experience, Uniform(count=2)):
    print(batch.time.tolist())
# > [0, 0, 0, 0]
# > [1, 1, 1, 1]
