"""Print every configuration of plans of the first protocol, on the validation and the test part.

python recipes/comparison/show.py base_mlp joint_mlp [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from first_protocol.confirmation import title
from first_protocol.records import read_results
from first_protocol.summary import Record, at_its_settings, group, nll, score

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+", help="names of plans of the first protocol")
    parser.add_argument("--seeds", type=int, nargs="+", help="all, if not given")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of results")
    options = parser.parse_args(arguments)
    records = [
        r for r in read_results(options.results, options.plans) if options.seeds is None or r["seed"] in options.seeds
    ]
    if not records:
        parser.error(f"there are no results of {', '.join(options.plans)}: first_protocol/plans has the names")
    print("\n".join(listing(records)))


def listing(records: list[Record]) -> Iterator[str]:
    """A table a task: metric x 100 and NLL, mean ± standard deviation over seeds."""
    records = [{**r, "settings": {**r["settings"], "regime": r["regime"]}} for r in map(at_its_settings, records)]
    values: dict[str, set[str]] = {}
    for record in records:
        for name, value in record["settings"].items():
            values.setdefault(name, set()).add(str(value))
    several = sorted(name for name, variants in values.items() if len(variants) > 1)
    for task, members in sorted(group(records, lambda r: r["task"]).items()):
        yield f"\n{task} ({members[0]['metric']} x 100)"
        yield f"{'':78} {'seeds':>5} {'validation':>12} {'NLL':>16} {'test':>12} {'NLL':>16}"
        for (method, *settings), runs in group(sorted(members, key=order), lambda r: configuration(r, several)).items():
            sound = [r for r in runs if "diverged" not in r]
            name = " ".join([method, *(f"{k} {v}" for k, v in zip(several, settings, strict=True))])
            cells = [f"{name:78} {len(sound):5}"]
            for part in ("validation", "test"):
                cells += [spread([100 * score(r, part) for r in sound], 1), spread([nll(r, part) for r in sound], 3)]
            yield " ".join(cells) + (f"  {len(runs) - len(sound)} diverged" if len(runs) > len(sound) else "")


def configuration(record: Record, several: list[str]) -> tuple[Any, ...]:
    """Return the method with its configuration, and the settings in which the runs differ."""
    return (title(record), *(record["settings"].get(name) for name in several))


def order(record: Record) -> str:
    return str((title(record), sorted((k, str(v)) for k, v in record["settings"].items())))


def spread(values: list[float], digits: int) -> str:
    if not values:
        return ""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}".rjust(10 + 2 * digits)


if __name__ == "__main__":
    main()
