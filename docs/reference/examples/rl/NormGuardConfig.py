from flowfactory.rl import NormGuardConfig


class Options(NormGuardConfig):
    def build(self, label): ...


print(Options(norm_guard=0.5).norm_guard, Options().norm_guard)
# > 0.5 0.0
