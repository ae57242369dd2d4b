"""Tables that commands write stand in the pages, so that they are read in the repository, too.

PYTHONPATH=tests python -m support.includes    puts the files of docs/generated into the pages again

A page has such a file between two comments, which name it.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
INCLUDED = re.compile(r"^<!-- from (\S+) -->\n.*?^<!-- end of \1 -->\n", re.DOTALL | re.MULTILINE)


def current(text: str) -> str:
    """A page with the files as they are now."""

    def block(found: re.Match[str]) -> str:
        name = found.group(1)
        content = (DOCS / name).read_text(encoding="utf-8").strip()
        return f"<!-- from {name} -->\n\n{content}\n\n<!-- end of {name} -->\n"

    return INCLUDED.sub(block, text)


def pages() -> list[Path]:
    """The pages that include files."""
    return [
        path
        for path in sorted(DOCS.rglob("*.md"))
        if "generated" not in path.relative_to(DOCS).parts and INCLUDED.search(path.read_text(encoding="utf-8"))
    ]


if __name__ == "__main__":
    for page in pages():
        page.write_text(current(page.read_text(encoding="utf-8")), encoding="utf-8")
