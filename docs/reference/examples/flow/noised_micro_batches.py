from flowfactory.flow import Uniform, noised_micro_batches
from flowfactory.testing import learning
from flowfactory_nft.nft import NFTConfig

experience = learning(NFTConfig(), advantages=[1.0, -1.0, 1.0, -1.0], batch_size=3).experience
for batch in noised_micro_batches(experience, Uniform(count=1)):
    print(batch.samples.advantages.tolist())
# > [1.0, -1.0, 1.0]
# > [-1.0]
