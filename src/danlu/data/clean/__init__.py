"""Clean rows by a recipe of small rules; every row dropped or changed is in a ledger. Imports no torch."""
