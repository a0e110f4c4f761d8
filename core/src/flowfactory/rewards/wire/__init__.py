"""The format in which samples go to a reward in another process, and its scores come back."""
