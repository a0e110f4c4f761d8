from flowfactory.flow import Uniform
from flowfactory.policy import flow_matching
from flowfactory.testing import learning
from flowfactory_sft.sft import SFTConfig

bench = learning(SFTConfig(), advantages=[1.0] * 4, start=(0.5, 0.0), batch_size=3)
losses = list(flow_matching(bench.experience, bench.policy, Uniform(count=2)))
print([len(loss.values) for loss in losses])  # three samples at two times, then one
# > [3, 3, 1, 1]
