"""Find duplicate rows: exact ones by hash, near ones by MinHash and true Jaccard similarity. Imports no torch."""
