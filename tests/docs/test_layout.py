"""On a wide screen and on a phone no page scrolls sideways, no table is clipped, no picture is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import browser

ROOT = Path(__file__).parents[2]
BROWSER = browser.find()

pytestmark = [
    pytest.mark.slow,  # half a minute, and more on a busy machine
    pytest.mark.skipif(BROWSER is None, reason=f"needs one of {', '.join(browser.NAMES)}"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as strictly as `make docs` does."""
    for package in ("material", "mkdocs_jupyter", "mkdocstrings"):
        pytest.importorskip(package, reason="needs hf-fam[docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    build = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return folder


def test_every_page_fits_a_phone_and_a_wide_screen(site: Path) -> None:
    pages = browser.pages_of(site)
    assert {"/index.html", "/quickstart/index.html", "/reference/trainers/index.html"} <= set(pages)
    found = browser.faults(str(BROWSER), site, pages)
    assert len(found) == 2 * len(pages)
    assert {place: faults for place, faults in found.items() if faults} == {}


MADE_UP = {
    "wide": ("<div style='width: 2000px'>wide</div>", "the page scrolls: "),
    "code": (f"<pre><code>{'code ' * 60}</code></pre>", "code scrolls: code code"),
    "notebook": (
        f"<div class='highlight'><pre style='overflow: auto'>{'code ' * 60}</pre></div>",
        "code scrolls: code code",
    ),
    # Tables without a class of their own get a frame that scrolls.
    "table": (
        f"<div style='overflow: hidden'><table class='own'><tr>{'<td>word</td>' * 60}</tr></table></div>",
        "a table",
    ),
    "picture": ("<img src='../img/none.png' alt='none'>", "a picture is missing: ../img/none.png"),
    "letters": (
        "<table><tr><td></td><td style='display: block; width: 2em'>"
        "<code style='word-break: break-all'>unbroken</code></td></tr></table>",
        "a name is broken: unbroken",
    ),
    "cell": (
        "<table><tr><td style='display: block; width: 2em; white-space: nowrap'>unbroken</td></tr></table>",
        "a table is clipped",
    ),
}


def test_the_check_sees_what_it_looks_for(site: Path) -> None:
    page = (site / "quickstart" / "index.html").read_text(encoding="utf-8")
    for name, (fault, _) in MADE_UP.items():
        assert "</article>" in page
        path = site / f"made-up-{name}" / "index.html"
        path.parent.mkdir()
        path.write_text(page.replace("</article>", f"{fault}</article>"), encoding="utf-8")
    found = browser.faults(str(BROWSER), site, [f"/made-up-{name}/index.html" for name in MADE_UP])
    for name, (_, message) in MADE_UP.items():
        assert [fault[: len(message)] for fault in found[f"/made-up-{name}/index.html at 1440 px"]] == [message]
    assert found["/made-up-code/index.html at 400 px"] == []  # on a phone, code may scroll
