"""Pure tensor functions, each beside the paper and equation it comes from."""
