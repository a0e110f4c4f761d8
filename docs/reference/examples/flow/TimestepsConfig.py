from flowfactory.flow import TimestepsConfig


class Options(TimestepsConfig):
    def build(self, label): ...


options = Options.model_validate({"timesteps": {"name": "logit-normal", "count": 4}})
print(options.timesteps.count, options.timesteps.mean)
# > 4 0.0
