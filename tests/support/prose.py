"""The words of a Markdown page, without its code: sentences, numbers, links.

tests/docs/test_style.py counts them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from support.includes import INCLUDED

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LONGEST_SENTENCE = 25
# Characters of a line of code that fit on a screen 1,400 pixels wide (docs/extra.css).
WIDEST_CODE = 110
FENCE = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def nav() -> dict[str, str]:
    """The section of every page of the site."""
    # Only the navigation, because later parts may have tags that are not plain YAML.
    text = re.search(r"^nav:\n(?:[ \n].*\n|\n)+", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert text
    sections: dict[str, str] = {}
    for entry in yaml.safe_load(text.group())["nav"]:
        ((title, pages),) = entry.items()
        sections |= dict.fromkeys(pages_in(pages), title)
    return sections


def pages_in(entry: Any) -> list[str]:
    """The pages below an entry of the navigation, without notebooks."""
    if isinstance(entry, str):
        return [entry] if entry.endswith(".md") else []
    return [page for item in entry for pages in item.values() for page in pages_in(pages)]


def user_pages() -> list[str]:
    """The pages that users read, by their paths in the repository: all but the section Contributing."""
    return ["README.md", *(f"docs/{page}" for page, section in nav().items() if section != "Contributing")]


@cache
def read(page: str) -> str:
    """A page without front matter, included files and blocks of code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(source) for source in cells)
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = INCLUDED.sub("", text)
    text = re.sub(r"^:::.*$", "", FENCE.sub("", text), flags=re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def plain(page: str) -> str:
    """A page as it is read: code is one word, of links and pictures only the words remain."""
    text = re.sub(r"``?[^`\n]+``?", "code", read(page))
    while LINK.search(text):
        text = LINK.sub(lambda link: "" if link.group(1) else link.group(2), text)
    return re.sub(r"<[^>\n]+>|\*\*|\{[^}\n]*\}", "", text)


def blocks(page: str) -> list[str]:
    """Paragraphs, items of lists, headings and cells of tables."""
    found: list[str] = []
    for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n(?=#)|\n(?=\|)", plain(page)):
        cells = part.strip().strip("|").split("|") if part.lstrip().startswith("|") else [part]
        found += [re.sub(r"\s+", " ", cell).strip(" -#*") for cell in cells]
    return [block for block in found if block]


def sentences(page: str) -> list[str]:
    """All sentences of a page."""
    return [sentence for block in blocks(page) for sentence in split(block)]


def missing_files(text: str) -> list[str]:
    """The files of the repository that a text names and that do not exist; a word in capitals stands for any name."""
    named = re.findall(r"(?<![\w/.-])(?:docs|hf_fam|recipes|tests)/[\w./-]*\w", text)
    return [name for name in named if not (ROOT / name).exists() and not re.search(r"/[A-Z]+/", name)]


def split(text: str) -> list[str]:
    """The sentences of a text; each ends with a full stop, a question mark or an exclamation mark."""
    return [s for s in re.split(r"(?<=[.!?])(?<! al\.)(?<! cf\.)\s+", text) if s]


def word_count(text: str) -> int:
    """The number of words; a sign that stands alone is none."""
    return len(re.findall(r"\S*\w\S*", text))


def long_sentences(page: str) -> list[str]:
    """The sentences that are too long."""
    return [sentence for sentence in sentences(page) if word_count(sentence) > LONGEST_SENTENCE]


def length(page: str) -> int:
    """Words of a page outside code and tables."""
    return word_count("\n".join(line for line in plain(page).splitlines() if not line.startswith("|")))


def numbers(page: str) -> list[str]:
    """The numbers with a decimal point or a percent sign, outside code; versions are no numbers.

    "58.8 %" and "58.8" are both "58.8"; "20 %" is "20 %".
    """
    text = re.sub(
        r"https?://\S+|arXiv[: ]*\d{4}\.\d+|(?:Python|torch|PyTorch|[Tt]ransformers|TRL|PEFT) [\d.]+", "", plain(page)
    )
    found = re.findall(r"(?<![\w.])[-+−]?(\d[\d,]*(?:\.\d+)?)(?:(e[-−]?\d+)|( ?%))?(?![\w]|\.\d)", text)
    return [
        f"{value} %" if percent and "." not in value else value + power
        for value, power, percent in found
        if "." in value or percent
    ]


NUMBER = re.compile(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?(?:e[-+−]?\d+)?)(?![\w]|\.\d)")
# They list names, not results.
NO_RECORDS = ("command.md", "modules.md", "support.md")


@cache
def recorded_numbers(path: str) -> frozenset[str]:
    """The numbers in a file, or in a folder of files that commands write."""
    place = ROOT / path
    files = [place] if place.is_file() else [f for f in place.rglob("*") if f.suffix in {".md", ".csv", ".json"}]
    texts = [file.read_text(encoding="utf-8") for file in files if file.name not in NO_RECORDS]
    return frozenset(number for text in texts for number in NUMBER.findall(text))


def untraced_numbers(page: str, places: Iterable[str], constants: Iterable[str]) -> list[str]:
    """Numbers of a page that are neither in files that commands write, nor constants.

    Args:
        page: the page.
        places: files and folders to look in.
        constants: numbers that need no record.
    """
    known = {*constants}.union(*(recorded_numbers(place) for place in places))
    return [number for number in numbers(page) if number not in known and number.removesuffix(" %") not in known]


def wide_code(page: str) -> list[str]:
    """The lines of code that the column of the site does not show in full."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [line for block in FENCE.finditer(text) for line in block.group().splitlines() if len(line) > WIDEST_CODE]


def matches(page: str, patterns: Iterable[str]) -> list[str]:
    """What a page says that some patterns forbid, outside code."""
    text = re.sub(r"\s+", " ", plain(page))
    return [found.group() for pattern in patterns for found in re.finditer(pattern, text, re.IGNORECASE)]


def links(page: str) -> list[tuple[bool, str, str]]:
    """Each link: whether it is a picture, its words, and its address."""
    found = []
    text = re.sub(r"``?[^`\n]+``?", "code", read(page))
    while match := LINK.search(text):
        found.append((match.group(1) == "!", match.group(2), match.group(3)))
        # The words stay, because a picture may be a link.
        text = f"{text[: match.start()]}{match.group(2)}{text[match.end() :]}"
    return found


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as mkdocs and GitHub make them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", (ROOT / page).read_text(encoding="utf-8")), re.MULTILINE)
    titles = [LINK.sub(r"\2", title).replace("`", "") for title in titles]
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
