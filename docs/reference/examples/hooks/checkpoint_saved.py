from pathlib import Path

from flowfactory import hookimpl


class Observer:
    @hookimpl
    def checkpoint_saved(self, iteration, path):
        print(f"to be copied: {path.name}")


Observer().checkpoint_saved(20, Path("first") / "checkpoints" / "20")
# > to be copied: 20
