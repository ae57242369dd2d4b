"""What the libraries below hf_fam print on their own, and how warnings look: without the lines of the source."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

# Messages of transformers about new heads and the order of checkpoints, by logger.
_REMARKS = {"transformers.modeling_utils": "LOAD REPORT", "transformers.trainer_utils": "mtime may not be reliable"}


def _is_no_remark(record: logging.LogRecord) -> bool:
    return _REMARKS[record.name] not in record.getMessage()


def quiet_libraries(*, shows_training: bool = False) -> None:
    """Turn off progress bars and remarks of transformers and datasets; the commands say what a user needs.

    Args:
        shows_training: keep the Trainer's own bar, and what transformers logs about a training.
    """
    import transformers

    if shows_training:
        for name in _REMARKS:
            logging.getLogger(name).addFilter(_is_no_remark)
    else:
        transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if find_spec("datasets") is not None:
        import datasets

        datasets.disable_progress_bars()


@contextlib.contextmanager
def short_warnings(in_words_of_a_shell: Callable[[object], str] = str) -> Iterator[None]:
    """Show warnings as one line, and none of a package that no command needs.

    Args:
        in_words_of_a_shell: returns the text of a warning as it is shown.
    """
    # At its import, bitsandbytes logs that another optional package is missing, even if no model needs it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    before = warnings.formatwarning

    def one_line(message: Any, *rest: Any, **more: Any) -> str:
        return f"Warning: {in_words_of_a_shell(message)}\n"

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = before
