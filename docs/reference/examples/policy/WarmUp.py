from flowfactory.policy import WarmUp

decay = WarmUp(decay=0.9)
print([decay(iteration) for iteration in (0, 8, 1000)])
# > [0.1, 0.5, 0.9]
