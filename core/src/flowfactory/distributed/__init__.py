"""The ranks of a run: how they start, what they exchange, and how they share weights."""
