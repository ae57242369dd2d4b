"""Without an optional package, what needs it says so in one sentence with the line that installs it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_fam import FAMTrainer, measure_relative_flatness
from hf_fam.cli import main as cli
from hf_fam.compare.statistics.distributions import t_quantile
from hf_fam.gan import earth_movers_distance
from hf_fam.inputs import packages
from hf_fam.landscape import PathPoint, find_critical_point
from hf_fam.landscape.path_figure import plot_infimum_path, plot_path
from hf_fam.measure.feature_density import feature_density
from hf_fam.measure.findings import MeasuredModel
from hf_fam.measure.report import html_report
from hf_fam.measure.representativeness import gap_of_features
from hf_fam.measure.robustness import feature_robustness
from hf_fam.methods import method_called
from support.tiny import arguments, classified, tiny_bert

PACKAGE = Path(__file__).parents[2] / "hf_fam"
OPTIONAL = {
    "datasets",
    "matplotlib",
    "pandas",
    "peft",
    "PIL",
    "pyarrow",
    "pytorch_optimizer",
    "scipy",
    "sklearn",
    "yaml",
}
# `hf-fam train`, `measure` and `compare` name all packages that are missing before they import these rooms.
CHECKED_BY_THE_COMMAND = {"recipes", "data", "cli"}
# Modules that are imported inside such a block, and where a missing package is another kind of answer.
EXPLAINED_ELSEWHERE = {
    *("methods/sam_trainer.py", "methods/bi_tempered.py", "measure/sources.py", "gan/sample_grid.py"),
    "gan/point_picture.py",
    *("measure/plotting.py", "measure/page.py", "measure/predictions.py", "landscape/smallest_curvature.py"),
}

MODEL = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
X, Y = torch.randn(12, 3), torch.arange(12) % 2
DATA = torch.utils.data.TensorDataset(X, Y)


def cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture(scope="module")
def table() -> Any:
    return measure_relative_flatness(MODEL, DATA, loss_fn=cross_entropy)


@pytest.fixture(scope="module")
def robustness() -> Any:
    return feature_robustness(MODEL, DATA, loss_fn=cross_entropy)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def block(package: str) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    return block


def trainer(path: Path) -> FAMTrainer:
    return FAMTrainer(model=tiny_bert(), args=arguments(path, fam_lambda=0), train_dataset=classified())


POINTS = [PathPoint("slide", 1.0, 0.5, 0.0), PathPoint("step", 0.5, 2.0, 1.0)]
NEED: list[tuple[str, str, Callable[..., Any]]] = [
    ("matplotlib", "measure", lambda table, robustness, path: table.plot(path / "a.png")),
    ("matplotlib", "measure", lambda table, robustness, path: robustness.plot(path / "a.png")),
    (
        *("matplotlib", "measure"),
        lambda table, robustness, path: html_report(
            MeasuredModel("m", table), robustness, data="d", settings={}, command="c"
        ),
    ),
    ("pandas", "measure", lambda table, robustness, path: table.to_pandas()),
    (
        "sklearn",
        "measure",
        lambda table, robustness, path: feature_density(MODEL, DATA, loss_fn=cross_entropy),
    ),
    (
        "sklearn",
        "measure",
        lambda table, robustness, path: gap_of_features(X, Y, folds=3),
    ),
    ("matplotlib", "landscape", lambda table, robustness, path: plot_path(POINTS, path / "a.png")),
    ("matplotlib", "landscape", lambda table, robustness, path: plot_infimum_path(POINTS, path / "a.png")),
    ("scipy", "compare", lambda table, robustness, path: t_quantile(0.9, 3)),
    ("scipy", "gan", lambda table, robustness, path: earth_movers_distance(torch.ones(2, 1), torch.ones(2, 1))),
    (
        *("scipy", "landscape"),
        lambda table, robustness, path: find_critical_point(MODEL, nn.CrossEntropyLoss(), (X, Y), weight_decay=0.1),
    ),
    ("pytorch_optimizer", "compare", lambda table, robustness, path: method_called("sam")(0.1).apply(trainer(path))),
    (
        "pytorch_optimizer",
        "compare",
        lambda table, robustness, path: method_called("bi_tempered")(0.1).apply(trainer(path)),
    ),
    (
        *("sklearn", "compare"),
        lambda table, robustness, path: method_called("logistic_regression")(1.0).fit(np.eye(2), np.arange(2)),
    ),
]


@pytest.mark.parametrize(("package", "extra", "call"), NEED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_sentence(
    table: Any, robustness: Any, tmp_path: Path, without: Callable[[str], None], package: str, extra: str, call: Any
) -> None:
    sys.modules.pop("hf_fam.methods.sam_trainer", None)
    without(package)
    with pytest.raises(ImportError) as refusal:
        call(table, robustness, tmp_path)
    name = {"sklearn": "scikit-learn", "pytorch_optimizer": "pytorch-optimizer"}.get(package, package)
    assert not isinstance(refusal.value, ModuleNotFoundError)
    assert str(refusal.value).endswith(f" needs {name}: pip install 'hf-fam[{extra}]'.")


@pytest.mark.parametrize(
    ("words", "package", "sentence"),
    [
        (["measure", "m", "--dataset", "d"], "datasets", "this command needs datasets: pip install 'hf-fam[measure]'."),
        (["predict", "m", "f.csv"], "datasets", "this command needs datasets: pip install 'hf-fam[measure]'."),
        (["measure", "m", "--dataset", "d", "--report", "r.html"], "matplotlib", "--report needs matplotlib:"),
        (["train", "causal_lm"], "peft", "this command needs peft: pip install 'hf-fam[recipes]'."),
        (["compare", "causal_lm"], "scipy", "this command needs scipy: pip install 'hf-fam[recipes]'."),
    ],
)  # fmt: skip
def test_a_command_says_it_before_it_begins(
    words: list[str], package: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == package else find(name))
    assert cli.main(words) == 1
    assert capsys.readouterr().err.startswith(f"hf-fam {words[0]}: {sentence}")


def bare_imports(path: Path) -> Iterator[str]:
    """The imports of optional packages outside a block that explains them."""

    def visit(node: ast.AST) -> Iterator[ast.AST]:
        is_explained = isinstance(node, ast.With) and "optional_packages" in ast.dump(node.items[0])
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if is_explained or is_for_types or isinstance(node, ast.Try):
            return
        yield node
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    for node in visit(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module)]
        yield from (name for name in names if name.split(".")[0] in OPTIONAL)


def test_no_other_import_of_an_optional_package() -> None:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        # The classifier's own __init__ explains what its modules need.
        if name.split("/")[0] in {*CHECKED_BY_THE_COMMAND, "classifier"} or name in EXPLAINED_ELSEWHERE:
            continue
        if imports := [*bare_imports(path)]:
            found[name] = imports
    assert not found
