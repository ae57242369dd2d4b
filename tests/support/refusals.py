"""The page of troubleshooting: messages from the source of hf_fam, with remedies of remedies.yaml where they need one.

PYTHONPATH=tests python -m support.refusals docs/generated/troubleshooting.md
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PACKAGE = Path(__file__).parents[2] / "hf_fam"
REMEDIES = Path(__file__).with_name("remedies.yaml")
# Stands for a value in a message, which is shown as three dots.
VALUE = "\N{HORIZONTAL ELLIPSIS}"
# Options, values, calls, arguments with their values, and names with an underscore.
CODE = re.compile(
    r"""--\w+
    | "[a-z_]+"
    | \b[a-z][\w.]*\([^()\s]*\)
    | \b[a-z][\w.]*=(?:\{[^{}]*\}|\[[^\[\]]*\]|"[^"]*"|'[^']*'|[\w.]*\w(?:\(\))?|\.\.\.)
    | \b(?!hf_fam\b(?!\.))\w[\w.]*_[\w.]*\w""",
    re.VERBOSE,
)
# Where the first part of a message may end, which becomes the heading.
END = re.compile(r"(?<=.{18})(?:: |\. |; )")


def messages() -> list[str]:
    """All texts in the source that may be messages, with a sign where a value is put in."""
    found: dict[str, None] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= dict.fromkeys(text for node in texts(tree) if " " in (text := template(node)))
    return list(found)


def texts(node: ast.AST) -> Iterator[ast.expr]:
    """The texts and f-strings below a node, without docstrings and without parts of f-strings."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        if isinstance(child, ast.JoinedStr) or (isinstance(child, ast.Constant) and isinstance(child.value, str)):
            yield child
        else:
            yield from texts(child)


def template(node: ast.expr) -> str:
    """A text, or an f-string with a sign in the place of each value."""
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values]
        return re.sub(f"{VALUE}+", VALUE, "".join(parts))
    assert isinstance(node, ast.Constant)
    return str(node.value)


def sections() -> list[dict[str, Any]]:
    """The groups of messages that the page lists."""
    content: list[dict[str, Any]] = yaml.safe_load(REMEDIES.read_text(encoding="utf-8"))
    return content


def message_with(fragment: str, known: list[str]) -> str:
    """The one message that contains a fragment, in which `...` stands for a value.

    Raises:
        ValueError: none does, or several do.
    """
    found = [message for message in known if fragment in message.replace(VALUE, "...")]
    if len(found) != 1:
        raise ValueError(f"{len(found)} messages of hf_fam contain {fragment!r}: change remedies.yaml.")
    return found[0]


def split(message: str) -> tuple[str, str]:
    """What is wrong, and what to do, which stands behind the first colon, semicolon or full stop outside brackets."""
    for end in END.finditer(message):
        head, rest = message[: end.start()], message[end.end() :].lstrip(f"{VALUE}.,: ")
        if head.count("(") == head.count(")") and head.count('"') % 2 == 0:
            return head, rest
    return message.rstrip("."), ""


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop; a command as code."""
    if text.startswith("pip install"):
        return f"Run `{text.rstrip('.')}`."
    first = text.partition(" ")[0]
    text = text if "=" in first else text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", ".)")) else f"{text}."


def shown(text: str) -> str:
    """A text that Markdown shows as it is; names and arguments are code."""
    parts = text.replace(VALUE, "...").split("`")
    words = "`".join(CODE.sub(r"`\g<0>`", part) if i % 2 == 0 else part for i, part in enumerate(parts)).split("`")
    words[::2] = [re.sub(r"([*_<>\[\]|#])", r"\\\1", part) for part in words[::2]]
    return "`".join(words)


def page() -> str:
    """All groups, each message under its own heading, as Markdown."""
    known = messages()
    parts = []
    for group in sections():
        parts.append(f"## {group['title']}")
        for entry in group["messages"]:
            head, rest = split(entry.get("before", "") + message_with(entry["has"], known))
            body = " ".join(filter(None, [shown(sentence(rest)), entry.get("remedy", "").strip()]))
            parts += [f"### {shown(head)}", *filter(None, [body])]
            if "code" in entry:
                parts.append(f"```{entry.get('language', 'python')}\n{entry['code'].strip()}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
