from torch import allclose

from flowfactory import At
from flowfactory.flow import Uniform, noised_batches
from flowfactory.testing import learning
from flowfactory_nft.nft import NFTConfig

bench = learning(NFTConfig(), advantages=[1.0, -1.0, 1.0, -1.0], start=(0.5, 0.0))
bench.policy.keep("before")
bench.move_to(1.0, 0.0)  # the velocity p x + q sigma doubles
[batch] = noised_batches(bench.experience, Uniform(count=1))
new, kept = bench.policy.compare(batch.step, {"old": At("before")})
print(allclose(new.velocity, 2 * kept["old"].velocity))
# > True
