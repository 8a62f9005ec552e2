"""One file per kind of data file: where its rows start, and one row again by its place."""
