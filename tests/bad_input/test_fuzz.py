"""Random inputs: each is accepted or refused in one line, before any training, and nothing else happens.

Accepted ones are trained for a step where that is cheap: a training that ends has finite numbers.
"""

from __future__ import annotations

import shutil
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from hf_fam import FAMArguments
from support.bad_input import catalog, outcome
from support.bad_input.calls import measured
from support.bad_input.models import make_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BOUNDED = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FINE = {"refused", "accepted"}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.text(max_size=40),
    st.binary(max_size=9),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
FLAGS = [
    *(
        *catalog.NUMBERS,
        *catalog.WHOLE,
        "optim",
        "lr_scheduler_type",
        "report_to",
        "fam_layer",
        "fam_estimator",
        "method",
    ),
    *("text_column", "label_column", "task_name", "do_regression", "metric_for_best_model", "bf16"),
    *("eval_strategy", "save_strategy", "lr_scheduler_kwargs", "label_names", "resume_from_checkpoint"),
    "attn_implementation",
]
WORDS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    st.sampled_from(
        ["nan", "-inf", "0", "-1", "1e999", "9" * 30, "{", "[]", "None", "true", "--", "-", "a,b", "0x10", "\u0661"]
    ),
    st.integers().map(str),
    st.floats().map(str),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "case"


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def require_fine(words: list[str], names: tuple[str, ...], folder: Path) -> None:
    found = outcome.of_command(words, names, folder)
    assert found.kind in FINE, (found, words)


@BOUNDED
@given(
    argument=st.sampled_from(
        ["fam_lambda", "fam_probes", "fam_warmup_steps", "fam_center", "fam_estimator", "fam_layer", "fam_smoothing"]
    ),
    value=VALUES,
)
def test_arguments(argument: str, value: Any) -> None:
    found = outcome.of_call(lambda: FAMArguments(**{argument: value}), (argument,))
    assert found.kind in FINE, found


@BOUNDED
@given(
    argument=st.sampled_from(
        ["probes", "relative_error", "weight_decay", "batch_size", "measures", "estimator", "layers", "seed"]
    ),
    value=VALUES.filter(lambda v: not (isinstance(v, int) and 50 < v <= 10_000)),  # as many probes take their time
)
def test_arguments_of_a_measurement(argument: str, value: Any) -> None:
    found = outcome.of_call(lambda: measured(**{argument: value}), (argument, argument.removesuffix("s")))
    assert found.kind in FINE, found


@BOUNDED
@given(flags=st.dictionaries(st.sampled_from(FLAGS), WORDS, min_size=1, max_size=2))
def test_command_lines(flags: dict[str, str], folder: Path, models: dict[str, str]) -> None:
    (emptied(folder) / "good.csv").write_text(catalog.rows())
    given = {"train_file": folder / "good.csv", **flags}
    require_fine(catalog.train("text_classification", folder, models, given), (), folder)


@BOUNDED
@given(
    words=st.lists(
        WORDS | st.sampled_from(["--items", "--probes=1", "--split", "--layers", "--json", "--task"]), max_size=4
    ),
    command=st.sampled_from(["measure", "layers", "train", "x"]),
)
def test_words(words: list[str], command: str, folder: Path, models: dict[str, str]) -> None:
    require_fine([command, *words], (), emptied(folder))


def changed(content: bytes, draw: Any) -> bytes:
    """Some bytes replaced, inserted, doubled or cut off."""
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        piece = draw(
            st.binary(max_size=4)
            | st.sampled_from([b'"', b",", b"\n", b"{", b"]", b"\xff\xfe", b"null", b"NaN", b"9" * 30])
        )
        kept = draw(st.integers(0, 6))
        content = content[:place] + piece + content[place + kept :] if draw(st.booleans()) else content[:place] + piece
    return content


GOOD = {
    "csv": catalog.ROWS.encode(), "json": catalog.json.dumps(catalog.OBJECTS).encode(),
    "jsonl": catalog.lines(catalog.OBJECTS).encode(), "parquet": catalog.parquet(catalog.TABLE),
}  # fmt: skip


@BOUNDED
@given(ending=st.sampled_from(sorted(GOOD)), data=st.data())
def test_files(ending: str, data: st.DataObject, folder: Path, models: dict[str, str]) -> None:
    path = emptied(folder) / f"some.{ending}"
    path.write_bytes(changed(GOOD[ending], data.draw))
    require_fine(
        catalog.train("text_classification", folder, models, {"train_file": path}), ("some.", "label", "text"), folder
    )
    require_fine(catalog.measure(folder, models, path), ("some.", "label", "text"), folder)


@BOUNDED
@given(rows=st.lists(st.fixed_dictionaries({"text": VALUES, "label": VALUES}), min_size=2, max_size=20))
def test_objects(rows: list[dict[str, Any]], folder: Path, models: dict[str, str]) -> None:
    path = emptied(folder) / "some.jsonl"
    path.write_text("".join(catalog.json.dumps(row, default=str) + "\n" for row in rows), encoding="utf-8")
    require_fine(catalog.train("text_classification", folder, models, {"train_file": path}), ("some.jsonl",), folder)


@settings(BOUNDED, max_examples=60)
@given(data=st.data(), name=st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=8))
def test_image_folders(data: st.DataObject, name: str, folder: Path, models: dict[str, str]) -> None:
    photos = catalog.pictures(emptied(folder) / "photos", count=4)
    picture = photos / "dog" / "0.png"
    picture.write_bytes(changed(picture.read_bytes(), data.draw))
    if name not in (".", ".."):
        catalog.picture(photos, f"{name}/1.png")
    given = {"train_dir": photos, "ignore_mismatched_sizes": None}
    require_fine(catalog.train("image_classification", folder, models, given), ("train_dir",), folder)


@BOUNDED
@given(
    settings_=st.dictionaries(st.sampled_from(FLAGS) | st.text(string.printable, max_size=6), VALUES, max_size=4),
    data=st.data(),
)
def test_yaml(settings_: dict[str, Any], data: st.DataObject, folder: Path, models: dict[str, str]) -> None:
    import yaml

    path = emptied(folder) / "some.yaml"
    content = yaml.safe_dump(settings_, allow_unicode=True).encode("utf-8", "replace")
    path.write_bytes(changed(content, data.draw) if data.draw(st.booleans()) else content)
    (folder / "good.csv").write_text(catalog.rows())
    words = catalog.train("text_classification", folder, models, {"train_file": folder / "good.csv"})
    require_fine([*words[:2], str(path), *words[2:]], (), folder)
