from torch import tensor

from flowfactory.rl import reward_contributions

rewards = {"sharp": tensor([0.0, 3.0]), "short": tensor([5.0, 4.0])}
for label, part in reward_contributions(rewards, {"sharp": 1.0, "short": 1.0}, tensor([0, 0])).items():
    print(label, part.tolist())
# > sharp [-1.5, 1.5]
# > short [0.5, -0.5]
