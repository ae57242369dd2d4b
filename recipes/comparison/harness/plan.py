"""Plans: which comparisons are wanted.

    question: Does FAM help a linear classifier on frozen features of texts?
    seeds: 12                                     # at most; also of `hf_fam.compare.compare`: grid_size,
    grid_size: 6                                  # tuning_repeats, margin. A grid of 1 tunes nothing.
    regimes: {head: {tokens: mean}}               # settings that differ from the regime's own, or a list of such
    tasks: [{name: banking77, shots: 10, settings: {epochs: 40}}]  # settings of this task alone, if any
    methods: [plain, fam, {weight_decay: 0.1}]    # names in `hf_fam.methods`, or a name with a strength

Every regime is combined with every task that it can read, and each combination is one comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_fam.methods import Method, method_called

from .regimes import REGIMES
from .tasks import Task
from .trainers import Trainers

PLANS = Path(__file__).parents[1] / "plans"
# Arguments of `hf_fam.compare.compare` that a plan may set.
OPTIONS = ("seeds", "grid_size", "tuning_repeats", "margin")
ENTRIES = ("question", "regimes", "tasks", "methods", *OPTIONS)


@dataclass(frozen=True)
class Comparison:
    """One comparison: a task, a regime with its settings, and methods.

    Attributes:
        name: short and unambiguous within the plan; the regime's own settings are left out.
        trainers: makes the Trainers.
        methods: the methods.
        options: other arguments of `hf_fam.compare.compare`.
    """

    name: str
    trainers: Trainers
    methods: list[Method]
    options: dict[str, Any]


def find_plan(name: str) -> Path:
    """Return the file of a plan, by its name or its path.

    Raises:
        ValueError: there is no such plan, or it is one of the first protocol.
    """
    file = Path(name) if name.endswith(".yaml") else PLANS / f"{name}.yaml"
    if file.is_file():
        return file
    finished = sorted((PLANS.parent / "first_protocol" / "plans").rglob(f"{name}.yaml"))
    if finished:
        raise ValueError(f"plan {name!r} belongs to the first protocol: report.py --plans {name} prints its results.")
    raise ValueError(
        f"there is no plan {name!r}: choose one of {', '.join(sorted(f.stem for f in PLANS.glob('*.yaml')))}."
    )


def read_plan(file: Path, data: Path, cache: Path) -> list[Comparison]:
    """Return the comparisons of a plan.

    Args:
        file: the plan.
        data: folder of the data sets.
        cache: folder of frozen features.

    Raises:
        ValueError: the plan is wrong; the message says where.
    """
    plan = yaml.safe_load(file.read_text(encoding="utf-8"))
    unknown = sorted(set(plan) - set(ENTRIES))
    missing = sorted({"regimes", "tasks", "methods"} - set(plan))
    if unknown or missing:
        raise ValueError(f"{file.name}: unknown entries {unknown}, missing entries {missing}.")
    return list(_comparisons(plan, data, cache))


def read_question(file: Path) -> str:
    """Return the question of a plan."""
    return str(yaml.safe_load(file.read_text(encoding="utf-8")).get("question", ""))


def _comparisons(plan: dict[str, Any], data: Path, cache: Path) -> Iterator[Comparison]:
    methods = [_method(entry) for entry in plan["methods"]]
    options = {name: plan[name] for name in OPTIONS if name in plan}
    for regime, several in plan["regimes"].items():
        if regime not in REGIMES:
            raise ValueError(f"regime {regime!r}: choose one of {', '.join(REGIMES)}.")
        for changes in several if isinstance(several, list) else [several]:
            for entry in plan["tasks"]:
                task = Task(**{name: value for name, value in entry.items() if name != "settings"})
                if not REGIMES[regime].reads(task):
                    continue
                settings = _settings(regime, {**(changes or {}), **entry.get("settings", {})})
                trainers = Trainers(task, regime, settings, data, cache)
                yield Comparison("-".join([regime, *_changed(settings), task.key]), trainers, methods, options)


def _method(entry: Any) -> Method:
    ((name, strength),) = entry.items() if isinstance(entry, dict) else ((entry, None),)
    return method_called(name)(strength)


def _settings(regime: str, changes: dict[str, Any]) -> Any:
    kind = REGIMES[regime].Settings
    unknown = sorted(set(changes) - {*kind.__dataclass_fields__})
    if unknown:
        raise ValueError(f"regime {regime!r} has no setting {unknown[0]!r}: {', '.join(kind.__dataclass_fields__)}.")
    return kind(**changes)


def _changed(settings: Any) -> list[str]:
    values, own = asdict(settings), asdict(type(settings)())
    values |= {f"fam-{name}": value for name, value in values.pop("fam").items()}
    words = [f"{name}-{value}" for name, value in values.items() if value != own.get(name)]
    return ["".join(c if c.isalnum() or c in "-._" else "-" for c in word) for word in words]
