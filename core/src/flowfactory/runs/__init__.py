"""A run from its first iteration to its last, and what it leaves: directory, checkpoints, export, estimate, report."""
