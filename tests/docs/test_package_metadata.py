"""What a stranger sees of the package: its addresses, its README, its workflows."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from email.message import Message
from email.parser import Parser
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def metadata() -> Message:
    """What the wheel will contain."""
    code = (
        "from hatchling.metadata.core import ProjectMetadata; from hatchling.plugin.manager import PluginManager; "
        "from hatchling.metadata.spec import get_core_metadata_constructors as formats; "
        "print(formats()['2.4'](ProjectMetadata('.', PluginManager())))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return Parser().parsestr(done.stdout)


def test_the_addresses(metadata: Message, hook: ModuleType) -> None:
    urls = dict(entry.split(", ") for entry in metadata.get_all("Project-URL") or ())
    assert set(urls) == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith(hook.REPOSITORY) for url in urls.values())


def test_every_link_of_the_readme_is_an_address_of_a_file(metadata: Message, hook: ModuleType) -> None:
    text = str(metadata.get_payload())
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 10 and all("://" in link or link.startswith("#") for link in links)
    for link in links:
        if link.startswith(hook.REPOSITORY):
            kind, branch, path = link.removeprefix(hook.REPOSITORY + "/").split("/", 2)
            assert kind == ("raw" if path.endswith((".png", ".svg")) else "blob") and branch == hook.BRANCH
            assert (ROOT / path.split("#")[0]).exists(), link


def test_links_that_stay(hook: ModuleType) -> None:
    for kept in ("[a](#part)", "[a](https://example.org/x)", "[a](mailto:a@example.org)"):
        assert hook.with_absolute_links(kept) == kept
    assert hook.with_absolute_links("![a](b.png)") == f"![a]({hook.REPOSITORY}/raw/main/b.png)"


def test_the_repository_is_named_once(hook: ModuleType) -> None:
    """So that one line changes when it is known."""
    owner = hook.REPOSITORY.split("/")[3]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout")
    files = [
        ROOT / name for name in listed.stdout.split("\0") if name.endswith((".md", ".py", ".toml", ".yml", ".cff"))
    ]
    pattern = re.compile(rf"github\.com/{owner}\b")
    named = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in files
        if file.exists()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert len(named) == 1 and named[0].startswith("hatch_build.py"), named


def test_the_workflows_call_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pythons, called = set(), set()
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values():
            pythons |= set(job.get("strategy", {}).get("matrix", {}).get("python", ()))
            for step in job["steps"]:
                pythons |= {step.get("with", {}).get("python-version")}
                if "run" in step:
                    command, target, *_ = step["run"].split()
                    assert command == "make" and target in targets, step
                    called.add(target)
    assert {"test", "test-minimum", "docs", "build"} <= called
    assert {"3.10", "3.11", "3.12", "3.13"} <= pythons


def test_every_extra_that_is_named_exists(metadata: Message) -> None:
    extras = set(metadata.get_all("Provides-Extra") or ())
    files = [*ROOT.glob("hf_fam/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    named = {
        (name, file.name)
        for file in files
        for group in re.findall(r"(?:hf-fam|install (?:-e )?['\"]?\.)\[([a-z,]+)\]", file.read_text(encoding="utf-8"))
        for name in group.split(",")
    }
    assert named and not {(name, file) for name, file in named if name not in extras}
