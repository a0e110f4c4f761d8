from flowfactory.policy import Power

decay = Power(power=1.0, decay=0.9)
print([decay(iteration) for iteration in (0, 1, 3, 100)])
# > [0.0, 0.5, 0.75, 0.9]
