"""Formats of tool definitions and calls, one family per file."""
