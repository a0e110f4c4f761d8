from torch import allclose

from flowfactory.flow import Uniform, noised_batches
from flowfactory.policy import At, look_ahead
from flowfactory.testing import learning
from flowfactory_nft.nft import NFTConfig

bench = learning(NFTConfig(), advantages=[1.0, -1.0, 1.0, -1.0], start=(0.5, 0.0))
bench.policy.keep("before")
bench.move_to(0.5, 1.0)  # the velocity p x + q sigma grows by sigma
batches = list(noised_batches(bench.experience, Uniform(count=1)))


def moved(piece, new, kept):
    return (new.velocity - kept["old"].velocity).flatten(1).mean(1)


[(found, _)] = look_ahead(bench.policy, batches, {"old": At("before")}, since=At("before"), measure=moved)
print(allclose(found, batches[0].step.sigma))
# > True
