from pathlib import Path

from flowfactory import RunInfo

run = RunInfo(directory=Path("runs/first"), config=None, iterations=100)
print((run.directory / "notes.txt").as_posix(), run.iterations)
# > runs/first/notes.txt 100
