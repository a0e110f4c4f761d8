from pathlib import Path

from flowfactory import EvaluatedSample, hookimpl


class Observer:
    @hookimpl
    def evaluation_finished(self, iteration, samples):
        print(iteration, [(sample.path.name, sample.scores) for sample in samples])


Observer().evaluation_finished(20, [EvaluatedSample(Path("000.png"), "a red ring", {"strict": 1.0})])
# > 20 [('000.png', {'strict': 1.0})]
