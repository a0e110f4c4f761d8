"""What is installed: components found through entry points and one-file plugins."""
