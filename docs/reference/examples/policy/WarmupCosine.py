from flowfactory.policy import WarmupCosine

decay = WarmupCosine(warmup=10, start=0.5, end=0.9, iterations=100)
print([round(decay(iteration), 3) for iteration in (0, 5, 10, 60, 110)])
# > [0.0, 0.25, 0.5, 0.7, 0.9]
