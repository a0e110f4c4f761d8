"""What families of models over diffusers pipelines share."""
