"""Loading, adapting, quantising stock transformers models, and running them over flat token streams."""
