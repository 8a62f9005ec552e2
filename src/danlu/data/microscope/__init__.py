"""The mask microscope: what of a data set is trained, token by token and as a whole. Trains nothing."""
