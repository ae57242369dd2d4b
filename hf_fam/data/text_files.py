"""Text of a file, which must be UTF-8."""

from __future__ import annotations

import codecs
from pathlib import Path

from .errors import DataError

# Byte-order marks of other encodings. That of UTF-32 begins with that of UTF-16.
_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def read_utf8(path: Path) -> bytes:
    """Return the bytes of a text file, without a byte-order mark.

    Args:
        path: the file.

    Raises:
        DataError: the file is empty, or its encoding is not UTF-8.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    if not content.strip():
        raise DataError("the file is empty." if not content else "there are no rows.")
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    if encoding is not None:
        raise DataError(f"the file is encoded as {encoding}: save it as UTF-8.")
    content = content.removeprefix(codecs.BOM_UTF8)
    zero = content.find(b"\0")
    if zero >= 0:
        raise DataError(f"byte {zero} is zero, so the file is no UTF-8 text: save it as UTF-8.")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"line {line} is not encoded as UTF-8 (byte {content[error.start]:#x}): save it as UTF-8."
        ) from None
    return content
