"""The weights of a run: trained, kept and averaged; adapters, and what is done to a transformer's blocks."""
