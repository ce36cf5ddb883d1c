"""A bundle as a model of a Triton repository."""
