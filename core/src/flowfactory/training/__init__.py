"""An iteration: rollouts, advantages, and optimizer steps; evaluation, and the checks before the first update."""
