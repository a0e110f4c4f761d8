"""``flowfactory serve``: one reward over HTTP, which holds whatever is sent to it and whatever the reward does."""
