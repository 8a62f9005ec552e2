"""`python -m danlu` is the same program as `danlu`; launchers start it in several processes."""

import os
import sys
from typing import NoReturn

from danlu.cli.main import main


def leave(code: int) -> NoReturn:
    """End the program; a process of a group ends at once when all of them are done.

    Python's own way out takes gloo's threads apart while another process may still talk to them: now and then it aborts
    after everything is written.
    """
    torch = sys.modules.get("torch")
    if code or torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        raise SystemExit(code)
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    leave(main())
