from flowfactory.rl import AdaptiveKL

weight = AdaptiveKL(target=0.1, start=0.01)
print(weight(0.01, 0.2), weight(0.01, 0.1), weight(0.01, 0.05))
# > 0.02 0.01 0.005
