"""Pages of a built site in headless Chromium: sideways scrolling, clipped tables, broken names, missing pictures.

python tests/support/browser.py SITE    lists it for every page
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

WIDTHS = (400, 1440)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# One page after another in a frame of each width, which is the viewport of the page's style sheets.
PROBE = """<!doctype html><meta charset="utf-8"><body><script>
const TOLERANCE = 1;  // pixels: positions are rounded
const text = element => element.textContent.trim().replace(/\\s+/g, " ").slice(0, 60);
const scrolls = element => element.scrollWidth > element.clientWidth + TOLERANCE;

function clipped(element, view) {
  const box = element.getBoundingClientRect();
  for (let e = element.parentElement; e; e = e.parentElement) {
    const overflow = view.getComputedStyle(e).overflowX;
    if (["auto", "scroll"].includes(overflow)) return false;  // can be scrolled into view
    if (overflow !== "visible" && box.right > e.getBoundingClientRect().right + TOLERANCE) return true;
  }
  return false;
}

function faults(view, width) {
  const page = view.document, root = page.scrollingElement, found = [];
  if (scrolls(root)) found.push("the page scrolls: " + root.scrollWidth + " px");
  for (const code of page.querySelectorAll("pre, pre > code"))
    if (width > 1000 && scrolls(code)) found.push("code scrolls: " + text(code));
  for (const table of page.querySelectorAll("table")) {
    const cells = [...table.querySelectorAll("th, td")];
    if (clipped(table, view) || cells.some(scrolls)) found.push("a table is clipped: " + text(table));
  }
  for (const picture of page.images)
    if (!picture.naturalWidth) found.push("a picture is missing: " + picture.getAttribute("src"));
  for (const name of page.querySelectorAll("td code")) {
    const parts = name.textContent.split(/[\\s\\-/]+/);
    if (name.getClientRects().length > parts.length) found.push("a name is broken: " + text(name));
  }
  return found;
}

async function show(page, widths, found) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width: ${widths[0]}px; height: 900px; border: 0`;
  frame.src = page;
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  await frame.contentDocument.fonts.ready;
  await new Promise(done => setTimeout(done, 0));  // the theme wraps tables when it has loaded
  for (const width of widths) {
    frame.style.width = `${width}px`;
    found[`${page} at ${width} px`] = faults(frame.contentWindow, width);
  }
  frame.remove();
}

(async () => {
  const { pages, widths } = await (await fetch("/pages.json")).json(), found = {};
  for (const page of pages) await show(page, widths, found);
  await fetch("/found", { method: "POST", body: JSON.stringify(found) });
})();
</script>"""


def find() -> str | None:
    """Return the command of the browser, or None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def pages_of(site: Path) -> list[str]:
    """Return the addresses of the pages of a built site."""
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    return [f"/{page}" for page in pages if not page.startswith("assets/")]


def faults(browser: str, site: Path, pages: list[str], timeout: float = 300.0) -> dict[str, list[str]]:
    """Return the faults of every page at every width; the keys are the address and the width."""
    found: queue.Queue[dict[str, list[str]]] = queue.Queue()
    handler = functools.partial(_Handler, directory=str(site), pages=pages, found=found)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, tempfile.TemporaryDirectory() as home:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--disable-gpu", "--no-first-run", "--hide-scrollbars", f"--user-data-dir={home}"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses to start as root with it
        with subprocess.Popen(
            [browser, *flags, "--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/probe.html"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                return found.get(timeout=timeout)
            finally:
                process.terminate()
                process.wait()
                server.shutdown()


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serve the site, the probe and the list of pages, and take what the probe found."""

    def __init__(self, *args: object, pages: list[str], found: queue.Queue[dict[str, list[str]]], **more: str) -> None:
        self.pages, self.found = pages, found
        super().__init__(*args, **more)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if self.path == "/probe.html":
            self._answer("text/html", PROBE)
        elif self.path == "/pages.json":
            self._answer("application/json", json.dumps({"pages": self.pages, "widths": WIDTHS}))
        else:
            super().do_GET()

    def do_POST(self) -> None:
        self.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer("text/plain", "")

    def _answer(self, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    folder, command = Path(sys.argv[1]), find()
    if command is None:
        sys.exit(f"found none of {', '.join(NAMES)}")
    for key, lines in faults(command, folder, pages_of(folder)).items():
        for line in lines:
            print(f"{key}: {line}")
