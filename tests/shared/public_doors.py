"""The modules that authors of plugins import from; everything else in core is private."""

ROOMS = ("flow", "models", "policy", "rewards", "rewards.wire", "rl", "testing", "testing.tiny_checkpoints")
DOORS = ["flowfactory", *(f"flowfactory.{room}" for room in ROOMS)]
