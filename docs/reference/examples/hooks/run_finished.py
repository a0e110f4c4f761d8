from pathlib import Path

from flowfactory import RunInfo, hookimpl


class Observer:
    @hookimpl
    def run_finished(self, run):
        print(f"done: {run.directory}")


Observer().run_finished(RunInfo(Path("first"), config=None, iterations=100))
# > done: first
