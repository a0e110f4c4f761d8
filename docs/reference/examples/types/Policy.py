from flowfactory.testing import learning
from flowfactory_nft.nft import NFTConfig

bench = learning(NFTConfig(), advantages=[1.0, -1.0, 1.0, -1.0], start=(0.5, 0.0))
bench.policy.keep("average")
bench.move_to(1.0, 0.0)
bench.policy.update_ema("average", decay=0.75)
with bench.policy.using("average"):
    print(bench.policy.parameters["transformer.p"].item())
# > 0.625
