from flowfactory.policy import Constant

decay = Constant(decay=0.9)
print(decay(0), decay(100))
# > 0.9 0.9
