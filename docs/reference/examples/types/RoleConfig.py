from flowfactory import RoleConfig

print(RoleConfig(steps=5, lr=1e-4))
# > steps=5 lr=0.0001
