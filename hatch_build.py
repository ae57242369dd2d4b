"""What the wheel says about itself to strangers: addresses, and a README whose links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# The only place that names the repository. Put its owner here before the first release.
REPOSITORY = "https://github.com/OWNER/hf-fam"
BRANCH = "main"

_LINK = re.compile(r"(?P<image>!?)(?P<text>\[[^\]]*\])\((?P<target>[^)\s]+)\)")


class ReadmeAndAddresses(MetadataHookInterface):
    """Fill in the dynamic fields of pyproject.toml."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Add ``readme`` and ``urls``."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": with_absolute_links(text)}
        metadata["urls"] = {
            "Homepage": REPOSITORY,
            "Documentation": f"{REPOSITORY}/blob/{BRANCH}/docs/index.md",
            "Changelog": f"{REPOSITORY}/blob/{BRANCH}/CHANGELOG.md",
            "Issues": f"{REPOSITORY}/issues",
        }


def with_absolute_links(text: str) -> str:
    """Return Markdown whose links to files of the repository are addresses; pictures get those of the raw files."""
    return _LINK.sub(_absolute, text)


def _absolute(link: re.Match[str]) -> str:
    target = link["target"]
    if target.startswith(("#", "mailto:")) or "://" in target:
        return link[0]
    kind = "raw" if link["image"] else "blob"
    return f"{link['image']}{link['text']}({REPOSITORY}/{kind}/{BRANCH}/{target})"
