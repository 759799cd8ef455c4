"""Loading without other libraries' log lines and progress bars, which would be taken for ours on stderr."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and bars of transformers, PEFT and the hub client inside; exceptions pass.

    What those warnings say and matters (missing, unexpected or mismatched keys) is read from the loaders' return
    values instead, and raised.
    """
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
