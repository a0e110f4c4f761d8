from flowfactory import hookimpl


@hookimpl
def register_components(register):
    register("reward", "brightness", "brightness:BrightnessConfig")


register_components(register=print)
# > reward brightness brightness:BrightnessConfig
