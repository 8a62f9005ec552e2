"""What a finished run becomes: merged weights, adapter, model card."""
