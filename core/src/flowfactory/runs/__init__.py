"""A run on disk: its directory, checkpoints, what may change on resume, export, estimate and report."""
