"""Rewards: scoring, executors, statistics, shared models, and rewards over HTTP."""
