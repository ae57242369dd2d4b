"""Write docs/results.md and the full tables of the first protocol.

python recipes/comparison/report.py                            # all of it
python recipes/comparison/report.py --plans confirm_linear     # print the tables of these plans of the first protocol
"""

from __future__ import annotations

import argparse
from pathlib import Path

from first_protocol.records import read_results
from first_protocol.summary import Record
from first_protocol.tables import decided_beforehand, in_brief, tables
from harness.results import comparison_tables

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "results.md"
FINDINGS = HERE / "findings.md"  # written by hand, from the tables

PAGE_HEADER = """\
---
search:
  exclude: true
---

# Results

The findings of the study in `recipes/comparison`. Made by `python recipes/comparison/report.py`; do not edit. The
numbers that other pages report are in the [full tables](#the-full-tables).
"""

WHERE_THE_TABLES_ARE = """\
## The full tables

In a checkout, `recipes/comparison/tables` has every comparison and every configuration. `questions.md` goes question by
question. Each kind of training has a file, with the tests against every rival. `README.md` there says how to read them.

```bash
python recipes/comparison/report.py             # writes this page and the tables
python recipes/comparison/show.py base_mlp      # every configuration of a plan, on validation and on test
```
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of results")
    parser.add_argument(
        "--plans", nargs="+", default=[], help="print the results of these plans instead of writing all"
    )
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--tables", type=Path, default=HERE / "tables", help="folder for the full tables")
    options = parser.parse_args(arguments)
    records = read_results(options.results, options.plans)
    if options.plans:
        if not records:
            parser.error(f"there are no results of {', '.join(options.plans)}: first_protocol/plans has the names")
        print("\n".join([in_brief(decided_beforehand(records)), *tables(records, None).values()]))
        return
    complete = options.results.resolve() == (HERE / "results").resolve()
    texts = {options.output: page(records, complete, options.results)}
    if records:
        questions = HERE / "questions.yaml" if complete else None
        texts |= {options.tables / name: text for name, text in tables(records, questions).items()}
    for file, text in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    print(f"{options.output}, {options.tables}: {len(records)} runs of the first protocol")


def page(records: list[Record], complete: bool, results: Path) -> str:
    """Return the page of the site: the findings, if these are all results, and what was decided."""
    confirmed = decided_beforehand(records)
    findings = [FINDINGS.read_text(encoding="utf-8")] if complete else []
    brief = [in_brief(confirmed)] if confirmed else []
    return "\n".join([PAGE_HEADER, *findings, *comparison_tables(results), *brief, WHERE_THE_TABLES_ARE])


if __name__ == "__main__":
    main()
