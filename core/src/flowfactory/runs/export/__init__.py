"""A run's weights for others to load, in a folder that stands by itself."""
