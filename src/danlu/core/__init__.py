"""What every other package may use: errors, registry, schema, records, streams, run directory. Never imports torch."""
