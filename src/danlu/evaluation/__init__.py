"""Scores of a model: perplexity, exact answers, generation metrics."""
