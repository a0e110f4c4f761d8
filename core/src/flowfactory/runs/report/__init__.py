"""The report: one page of a run, or of several to compare, made from what is on disk, and safe to make of a stranger's run."""
