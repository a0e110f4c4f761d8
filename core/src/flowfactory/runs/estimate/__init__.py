"""What a run takes of each rank's memory, estimated without its weights."""
