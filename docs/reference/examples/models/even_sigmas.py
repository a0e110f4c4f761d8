from flowfactory.models import even_sigmas

print(even_sigmas(4))
# > [1.0, 0.75, 0.5, 0.25]
