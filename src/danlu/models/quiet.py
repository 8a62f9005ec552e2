"""Keep the libraries from talking over danlu while they load: no bars for small files, no notes on their renames."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

from danlu.models.source import local_folder

LARGE = 2**30  # bytes; above it a progress bar is worth its lines


@contextmanager
def quiet_notes() -> Iterator[None]:
    """Hide what transformers logs below an error: danlu says it in words of its own."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def quiet_loading(name: str | None = None) -> Iterator[None]:
    """Hide progress bars, unless the weights of `name` are large, and warnings about deprecated names in libraries."""
    folder = None if name is None else local_folder(name)
    large = name is not None and (folder is None or sum(f.stat().st_size for f in folder.glob("*.safetensors")) > LARGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        # danlu refuses such adapters itself, in one sentence
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        if large or not logging.is_progress_bar_enabled():
            yield
            return
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.enable_progress_bar()
