"""How what a policy draws drifts away from what it drew at first: figures of pictures and videos, and alarms about them."""
