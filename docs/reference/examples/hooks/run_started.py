from pathlib import Path

from flowfactory import RunInfo, hookimpl


class Observer:
    @hookimpl
    def run_started(self, run, policy):
        print(f"{run.iterations} iterations into {run.directory}")


Observer().run_started(RunInfo(Path("first"), config=None, iterations=100), policy=None)
# > 100 iterations into first
