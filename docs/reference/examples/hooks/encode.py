from torch import tensor

from flowfactory import Canvas, Prompt, hookimpl


class Model:
    @hookimpl
    def encode(self, prompts, canvas):
        for prompt in prompts:
            yield {"length": tensor(float(len(prompt.text)))}


print(list(Model().encode([Prompt("red"), Prompt("green")], Canvas(8, 8))))
# > [{'length': tensor(3.)}, {'length': tensor(5.)}]
