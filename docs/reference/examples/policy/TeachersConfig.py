from flowfactory.policy import TeachersConfig


class Options(TeachersConfig):
    def build(self, label): ...


options = Options.model_validate({"teachers": {"text": "text.safetensors"}}, context={"anywhere": True})
print(options.teacher_names)
# > ('text',)
