"""One file per verb: argument parsing and printing, no logic."""
