from flowfactory.policy import kl_reference
from flowfactory.rl import KLTerm

refreshed = KLTerm.model_validate({"coefficient": 0.01, "refresh": {"every": 50}})
print(kl_reference(0.01), "|", kl_reference(refreshed))
# > reference | kl reference
