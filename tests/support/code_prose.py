"""The sentences of the package's code: docstrings, comments, and strings that a user may read.

PYTHONPATH=.:tests python -m support.code_prose [FOLDER]    lists those that break a rule
"""

from __future__ import annotations

import ast
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

from support.prose import LONGEST_SENTENCE, split, word_count
from support.style import BANNED, IN_BRACKETS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hf_fam"
# Its long strings are CSS.
STYLESHEET = PACKAGE / "measure" / "page.py"
SECTIONS = ("Args", "Returns", "Raises", "Yields", "Attributes", "Examples", "Example", "Note", "Warns")
# A string with fewer words is a key, a heading or a part of a sentence.
FEWEST_WORDS = 4
FOR_TOOLS = re.compile(r"# ?(?:noqa|fmt:|type:|ruff:)")


def modules(folder: str = "") -> list[Path]:
    """The files of the package, or of one of its rooms."""
    return sorted((PACKAGE / folder).rglob("*.py"))


def docstring_sentences(path: Path) -> Iterator[tuple[int, str]]:
    """Every sentence of the docstrings of a file, with the line of the docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                line = 1 if isinstance(node, ast.Module) else node.lineno
                yield from ((line, sentence) for part in paragraphs(text) for sentence in sentences(part))


def message_sentences(path: Path) -> Iterator[tuple[int, str]]:
    """Every sentence of the strings of a file that are no docstrings; what is formatted in counts as one word."""
    if path == STYLESHEET:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Expr) for part in ast.walk(node)
               if isinstance(node.value, ast.Constant)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in ast.walk(node) if part is not node and isinstance(part, ast.Constant)}
            # Strings within a replacement are read on their own.
            skipped -= {id(p) for v in node.values if isinstance(v, ast.FormattedValue) for p in ast.walk(v.value)}
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            skipped |= {id(part) for part in ast.walk(node.format_spec)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|]|\w+:))", text):
            yield from ((node.lineno, s) for s in sentences(part) if word_count(s) >= FEWEST_WORDS)


def comment_sentences(path: Path) -> Iterator[tuple[int, str]]:
    """Every sentence of the comments of a file; lines of one comment belong together, notes to tools are left out."""
    text = path.read_text(encoding="utf-8")
    blocks: list[tuple[int, int, str]] = []  # first line, last line, words
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or FOR_TOOLS.match(token.string):
            continue
        line, words = token.start[0], token.string.lstrip("# ")
        has_code = bool(token.line[: token.start[1]].strip())
        if blocks and blocks[-1][1] == line - 1 and not has_code:
            first, _, above = blocks.pop()
            blocks.append((first, line, f"{above} {words}"))
        else:
            blocks.append((line, 0 if has_code else line, words))
    for first, _, words in blocks:
        yield from ((first, sentence) for sentence in sentences(words))


def paragraphs(docstring: str) -> Iterator[str]:
    """The paragraphs of a docstring and its entries, without examples, tables and formulas."""
    docstring = re.sub(r"^ *```.*?^ *```$", "", docstring, flags=re.DOTALL | re.MULTILINE)
    docstring = re.sub(r"^( *)>>>.*?(?=\n\s*\n|\Z)", "", docstring, flags=re.DOTALL | re.MULTILINE)
    docstring = re.sub(r"::\n\n(?:(?: {4,}.*)?\n)+", ".\n\n", docstring + "\n")
    for block in re.split(r"\n\s*\n", docstring):
        block = re.sub(rf"^\s*(?:{'|'.join(SECTIONS)}):\s*$", "", block, flags=re.MULTILINE)
        block = textwrap.dedent(block)
        # An entry begins where a line is not indented, or with a dash or a number.
        for part in re.split(r"\n(?=\s*(?:[-*]|\d+\.) )|\n(?=[\w*`, ]+(?:\([^()\n]*\))?: )", block):
            if entry := re.match(r"\s*[\w*`, .]+(?:\([^()\n]*\))?: ", part):
                yield from part[entry.end() :].split("; ")  # a list
            else:
                yield part


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text; code is one word."""
    text = re.sub(r"``?[^`\n]+``?", "code", text)
    text = re.sub(r"\[([^\[\]]*)\](?:\([^()\s]*\)|\[[^\[\]]*\])?", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip(" -*|")
    yield from split(text)


def faults(path: Path) -> list[str]:
    """What breaks a rule, with its line: long sentences, banned phrases, sentences in brackets."""
    found = []
    for line, sentence in (*docstring_sentences(path), *message_sentences(path), *comment_sentences(path)):
        if word_count(sentence) > LONGEST_SENTENCE:
            found.append(f"{line}: {sentence}")
        found += [f"{line}: {m.group()}" for p in BANNED for m in re.finditer(p, sentence, re.IGNORECASE)]
        found += [f"{line}: {m.group()}" for m in re.finditer(IN_BRACKETS, sentence)]
    return found


if __name__ == "__main__":
    for file in modules(*sys.argv[1:]):
        for fault in faults(file):
            print(f"{file.relative_to(ROOT)}:{fault}")
