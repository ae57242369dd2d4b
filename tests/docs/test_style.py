"""Pages for users are short, plain and American; their numbers come from records, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support import prose, style
from support.includes import INCLUDED
from support.launch import ROOT

PAGES = prose.user_pages()


@pytest.mark.parametrize("rule", style.RULES)
@pytest.mark.parametrize("page", PAGES)
def test_pages_keep_the_rules(page: str, rule: str) -> None:
    assert style.RULES[rule](page) == []


def included() -> list[str]:
    """The files that commands write and pages for users include."""
    texts = [(prose.ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    return sorted({f"docs/{found.group(1)}" for text in texts for found in INCLUDED.finditer(text)})


NOTEBOOKS = [str(path.relative_to(prose.ROOT)) for path in sorted((prose.DOCS / "notebooks").glob("*.ipynb"))]


@pytest.mark.parametrize("rule", ["long sentences", "banned", "sentences in brackets"])
@pytest.mark.parametrize("page", [*included(), *NOTEBOOKS])
def test_tables_and_notebooks_keep_the_rules_for_words(page: str, rule: str) -> None:
    assert style.RULES[rule](page) == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


SPELLED = [*(ROOT / "hf_fam").rglob("*.py"), *(ROOT / page for page in PAGES), ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("file", SPELLED, ids=lambda file: str(file.relative_to(ROOT)))
def test_spelling_is_american(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert [m.group() for pattern in style.BRITISH for m in re.finditer(pattern, text, re.IGNORECASE)] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for is_picture, words, address in prose.links(page):
        assert words.strip(), f"{address} has no words"
        assert not is_picture or len(words.split()) > 3, f"{address}: its alternative text says too little: {words}"
        if re.match(r"[a-z]+:", address):
            continue
        path, _, anchor = address.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), address
        if anchor and not anchor.startswith("hf_fam.") and target.suffix == ".md":
            assert anchor in prose.anchors(str(target.relative_to(ROOT))), address


@pytest.mark.parametrize("file", SPELLED, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_that_are_named_exist(file: Path) -> None:
    assert prose.missing_files(file.read_text(encoding="utf-8")) == []


def test_sources_of_numbers_exist() -> None:
    assert [place for places in style.SOURCES.values() for place in places if not (ROOT / place).exists()] == []


def test_the_checks_see_what_they_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule, on a page that breaks it once."""
    long = "This sentence has " + "very " * 25 + "many words."
    text = f"# Title\n\n{long} A short one. The wrong labels of `code 3.14`. It gains 12.3456 points.\n\n![a](b.png)\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    assert prose.long_sentences("page.md") == [long]
    assert prose.matches("page.md", style.BANNED) == ["wrong labels"]
    assert style.untraced("page.md") == ["12.3456"]
    assert prose.links("page.md") == [(True, "a", "b.png")]
    assert prose.length("page.md") == 43
    (tmp_path / "docs").mkdir()
    assert prose.missing_files("See docs, docs/page.md, recipes/TASK/run.py and a/docs/b.md.") == ["docs/page.md"]
    assert any(re.search(pattern, "the centre of a coloured, regularised Optimiser") for pattern in style.BRITISH)
