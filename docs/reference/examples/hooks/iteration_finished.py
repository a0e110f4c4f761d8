from flowfactory import hookimpl


class Observer:
    @hookimpl
    def iteration_finished(self, iteration, metrics):
        if "eval/brightness/mean" in metrics:
            print(iteration, metrics["eval/brightness/mean"])


Observer().iteration_finished(5, {"eval/brightness/mean": 0.75})
# > 5 0.75
