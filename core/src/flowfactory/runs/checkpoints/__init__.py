"""A run's checkpoints: written while training goes on, whole or not there."""
