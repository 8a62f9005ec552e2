"""One file per training algorithm: Config, record, encode, prepare, loss."""
