"""From a registry name or a path to encoded examples; nothing is dropped without a ledger entry."""
