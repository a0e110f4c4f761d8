from pathlib import Path

from flowfactory import RunError, RunInfo, hookimpl


class Observer:
    @hookimpl
    def run_failed(self, run, error):
        print(f"{run.directory} ended by {type(error).__name__}: {error}")


Observer().run_failed(RunInfo(Path("first"), None, 100), RunError("the loss is not finite"))
# > first ended by RunError: the loss is not finite
