from flowfactory.policy import keep_kl_reference
from flowfactory.rl import KLTerm
from flowfactory.testing import learning
from flowfactory_nft.nft import NFTConfig

policy = learning(NFTConfig(kl=0.0), advantages=[1.0, -1.0, 1.0, -1.0]).policy
keep_kl_reference(policy, KLTerm.model_validate({"coefficient": 0.01, "refresh": {"every": 50}}))
print("kl reference" in policy.kept)
# > True
