"""Browser face of the schema."""
