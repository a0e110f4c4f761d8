from flowfactory.policy import Linear

decay = Linear(start=0.0, end=0.8, iterations=100)
print([decay(iteration) for iteration in (0, 50, 100, 500)])
# > [0.0, 0.4, 0.8, 0.8]
