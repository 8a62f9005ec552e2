"""`danlu version`: print the version."""

from collections.abc import Sequence

from danlu import __version__


def main(argv: Sequence[str]) -> int:
    """Print the version; arguments are ignored."""
    print(f"danlu {__version__}")
    return 0
