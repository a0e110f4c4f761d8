from flowfactory.policy import PiecewiseLinear

decay = PiecewiseLinear(points=((10, 0.0), (20, 0.5)))
print([decay(iteration) for iteration in (0, 10, 15, 20, 500)])
# > [0.0, 0.0, 0.25, 0.5, 0.5]
