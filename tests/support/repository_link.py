"""A hook of mkdocs: the site links to the repository that the package names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def on_config(config: Any, **_: Any) -> Any:
    """Set the link."""
    path = Path(config["config_file_path"]).with_name("hatch_build.py")
    config["repo_url"] = repository(path.read_text(encoding="utf-8"))
    return config


def repository(build_script: str) -> str:
    """The address of the repository in the text of hatch_build.py."""
    found = re.search(r'^REPOSITORY = "(.+)"$', build_script, re.MULTILINE)
    assert found is not None
    return found.group(1)
