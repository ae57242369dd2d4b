"""Text of a file: UTF-8, or the encoding that the user names."""

from __future__ import annotations

import codecs
from pathlib import Path

from ..inputs.text import quote
from .errors import DataError

UTF8 = "utf-8"
# Byte-order marks of other encodings. That of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# The encoding is guessed from this many bytes. With more than this share of bytes above 127, the letters are not Latin.
_SAMPLE, _LATIN_SHARE = 1 << 16, 0.25


def read_text(path: Path, encoding: str | None = None) -> bytes:
    """Return the text of a file as UTF-8, without a byte-order mark.

    Args:
        path: the file.
        encoding: its encoding, by a name that Python knows; UTF-8 by default.

    Raises:
        DataError: the file is empty or its encoding is another one; the message names the one to give.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    if not content.strip():
        raise DataError("the file is empty." if not content else "there are no rows.")
    name = require_encoding(encoding)
    if name != UTF8:
        try:
            content = content.decode(name).removeprefix("\ufeff").encode(UTF8)
        except UnicodeError:
            raise DataError(f"the file is not encoded as {encoding}: {_remedy(content)}") from None
        if not content.strip():
            raise DataError("there are no rows.")
    else:
        _require_utf8(content)
        content = content.removeprefix(codecs.BOM_UTF8)
    zero = content.find(b"\0")
    if zero >= 0:
        raise DataError(f"byte {zero} is zero, so the file is no text: {_remedy(content)}")
    return content


def read_lines(path: Path, encoding: str | None = None) -> list[str]:
    """Return the lines of a text file that are not blank, without the spaces around them.

    Args:
        path: the file.
        encoding: its encoding; UTF-8 by default.

    Raises:
        DataError: the file is empty or its encoding is another one.
    """
    return [line.strip() for line in read_text(path, encoding).decode(UTF8).splitlines() if line.strip()]


def require_encoding(encoding: str | None) -> str:
    """Return the name of an encoding as Python has it.

    Raises:
        DataError: there is no such encoding of texts.

    Examples:
        >>> require_encoding(None), require_encoding("Latin-1")
        ('utf-8', 'iso8859-1')
    """
    try:
        name = codecs.lookup(encoding or UTF8).name
        "".encode(name)
    except (LookupError, UnicodeError, ValueError):
        raise DataError(
            f"encoding={quote(encoding)}: there is no such encoding; usual ones are utf-8, cp1252, utf-16."
        ) from None
    return UTF8 if name == "utf-8-sig" else name


def _require_utf8(content: bytes) -> None:
    mark = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    if mark is not None:
        raise DataError(f"the file is encoded as {mark.upper()}: add --encoding {mark}, or save it as UTF-8.")
    try:
        content.decode(UTF8)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"line {line} is not encoded as UTF-8 (byte {content[error.start]:#x}): {_remedy(content)}"
        ) from None


def _remedy(content: bytes) -> str:
    guess = guess_encoding(content)
    return "give a text file in UTF-8." if guess is None else f"add --encoding {guess}, or save it as UTF-8."


def guess_encoding(content: bytes) -> str | None:
    """Return the likely encoding of a text that is not UTF-8, or None for other files.

    Examples:
        >>> guess_encoding("Grüße aus Köln".encode("latin-1")), guess_encoding("text,label".encode("utf-16-le"))
        ('cp1252', 'utf-16-le')
    """
    sample = content[:_SAMPLE]
    zeros = [sample[k::2].count(0) / max(1, len(sample[k::2])) for k in (0, 1)]
    if max(zeros) > 0.4 and min(zeros) < 0.1:  # every other byte of Latin letters in UTF-16
        name = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
        is_text = all(c.isprintable() or c.isspace() for c in sample.decode(name, errors="replace"))
        return name if is_text and _decodes(content, name) else None
    if 0 in sample or any(byte < 32 and byte not in b"\t\n\r\f" for byte in sample):
        return None
    above = sum(byte > 127 for byte in sample)
    if above <= _LATIN_SHARE * len(sample):
        return "cp1252" if _decodes(content, "cp1252") else "latin-1"
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return None
    best = from_bytes(sample).best()
    return best.encoding if best is not None and _decodes(content, best.encoding) else None


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeError:
        return False
    return True
