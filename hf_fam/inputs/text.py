"""Values and errors of others as part of a message: on one line, printable and short."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

LONGEST_MESSAGE = 300
# Characters of a value, or of a library's message, inside a message.
LONGEST_VALUE, LONGEST_PATH, LONGEST_REASON = 60, 100, 140


def quote(value: object, longest: int = LONGEST_VALUE) -> str:
    r"""Return a value as its `repr`, on one line, printable and shortened in the middle.

    Args:
        value: any object, also one without a usable `repr`.
        longest: number of characters.

    Examples:
        >>> quote("a.csv"), quote("\x1b[31mred"), quote("x" * 99, longest=12)
        ("'a.csv'", "'\\x1b[31mred'", "'xxx...xxxx'")
    """
    try:
        text = repr(value)
    except Exception:  # of classes of others, and of whole numbers with more than 4,300 digits
        text = f"<{type(value).__name__}>"
    return one_line(text, longest)


def listed(names: Iterable[object], longest: int = 120) -> str:
    """Return names in quotes, as many whole ones as fit, and the number of the others.

    Args:
        names: the names.
        longest: number of characters. The first name is always there.

    Examples:
        >>> listed(["neg", "pos"]), listed(["neg", "neutral", "pos"], longest=10), listed([])
        ("'neg', 'pos'", "'neg' and 2 more", 'none')
    """
    texts = [quote(name) for name in names]
    kept = texts[:1]
    for text in texts[1:]:
        if len(", ".join([*kept, text])) > longest:
            break
        kept.append(text)
    others = len(texts) - len(kept)
    return (", ".join(kept) or "none") + (f" and {others:,} more" if others else "")


def with_article(name: str) -> str:
    """Return a name after ``a`` or ``an``.

    Examples:
        >>> with_article("Linear"), with_article("Embedding")
        ('a Linear', 'an Embedding')
    """
    return f"{'an' if name[:1] in 'AEIOaeio' else 'a'} {name}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, printable and shortened.

    If the message is empty, it is the name of the error's class.
    """
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0], LONGEST_REASON)


def one_line(text: str, longest: int = LONGEST_MESSAGE) -> str:
    r"""Return text on one line, with unprintable characters escaped, and shortened in the middle.

    Args:
        text: the text.
        longest: number of characters.

    Examples:
        >>> one_line("two\nlines and an \x1b escape")
        'two lines and an \\x1b escape'
        >>> one_line("abcdefghijklmnop", longest=9)
        'abc...nop'
        >>> one_line("It is not a valid path to a directory of a model", longest=30)
        'It is not a...of a model'
    """
    shown = " ".join(
        text[: 4 * longest].split() if len(text) <= 4 * longest else [text[: 2 * longest], text[-longest:]]
    )
    shown = printable(shown)
    if len(shown) <= longest:
        return shown
    room = longest - 3
    head, tail = shown[: room // 2], shown[len(shown) - (room - room // 2) :]
    return f"{_without_part(head)}...{_without_part(tail[::-1])[::-1]}"


def _without_part(text: str) -> str:
    """Return text without the beginning of a word at its end; that of a path stays, because it may name a file."""
    whole, _, part = text.rpartition(" ")
    return whole if whole and part.isalpha() else text


def printable(text: str) -> str:
    r"""Return text whose unprintable characters, but for line breaks, are escaped: a terminal would obey some.

    Examples:
        >>> print(printable("a\x1b[31mred\nb"))
        a\x1b[31mred
        b
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, if one is near.

    Args:
        name: the unknown name.
        known: the names that there are.

    Examples:
        >>> did_you_mean("--num_lables", ["--num_labels", "--length"]), did_you_mean("--fly", ["--length"])
        ('; did you mean --num_labels?', '')
    """
    near = difflib.get_close_matches(name[:LONGEST_PATH], known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
