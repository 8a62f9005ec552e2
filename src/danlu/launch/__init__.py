"""Pipelines of steps and process launching."""
