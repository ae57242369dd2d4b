"""Inputs that users give by mistake: refused in one line before any training, and the right ones are not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from support.bad_input import outcome
from support.bad_input.calls import Call, all_calls
from support.bad_input.catalog import Case, all_cases
from support.bad_input.models import make_models

SAMPLE = {"data": 22, "images": 8, "commands": 20, "arguments": 10}


def sampled() -> list[object]:
    """All cases, of which a fixed sample of 60 is not left to the slow tests."""
    cases = [*all_cases(), *all_calls()]
    chosen = set()
    for kind, number in SAMPLE.items():
        names = [str(case) for case in cases if case.kind == kind]
        chosen |= {*random.Random(22).sample(names, number)}
    return [pytest.param(c, id=str(c), marks=[] if str(c) in chosen else pytest.mark.slow) for c in cases]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", sampled())
def test_input(case: Case | Call, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(case, Call):
        found = outcome.of_call(case.call, case.names)
    else:
        found = outcome.of_command(case.make(tmp_path, models), case.names, tmp_path)
    assert found.kind == case.expected, found.said
