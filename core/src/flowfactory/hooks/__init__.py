"""The hooks of a run: their specs, and typed calls to the components that implement them."""
