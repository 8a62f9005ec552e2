"""Finding what is wrong in data before a run does, with place, reason and cure. Trains nothing."""
