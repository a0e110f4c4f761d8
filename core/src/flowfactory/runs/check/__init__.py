"""What can be known of a run before it: everything that is wrong, its sizes, its memory, what it will encode."""
