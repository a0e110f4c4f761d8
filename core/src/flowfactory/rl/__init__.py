"""Reinforcement learning in pure functions: advantages, losses, and divergences."""
