"""`python -m danlu` is the same program as `danlu`."""

from danlu.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
