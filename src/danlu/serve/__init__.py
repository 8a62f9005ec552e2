"""HTTP face of a model."""
