"""What a user writes: the schema of a config, how it is read, and what a mistake in it is answered with."""
