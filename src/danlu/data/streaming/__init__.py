"""Training on rows as they are read: files of any size, a shuffle buffer, exact resume. Imports no torch."""
