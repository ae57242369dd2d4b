"""A hook of mkdocs: the site links to the repository that pyproject.toml names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomllib

NAMES = ("repository", "source", "source code", "homepage")


def on_config(config: Any, **_: Any) -> Any:
    """Set the link, if there is one."""
    path = Path(config["config_file_path"]).with_name("pyproject.toml")
    config["repo_url"] = repository(path.read_text(encoding="utf-8")) or config["repo_url"]
    return config


def repository(pyproject: str) -> str | None:
    """The address of the repository in the text of a pyproject.toml."""
    urls = {name.lower(): url for name, url in tomllib.loads(pyproject)["project"].get("urls", {}).items()}
    return next((urls[name] for name in NAMES if name in urls), None)
