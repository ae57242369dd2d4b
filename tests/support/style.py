"""The rules for words in pages for users, and the pages that still break them.

PYTHONPATH=tests python -m support.style    lowers the exceptions to what pages still need; it never raises one
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from support.prose import length, long_sentences, matches, nav, untraced_numbers, user_pages, wide_code

EXCEPTIONS = Path(__file__).parents[1] / "docs" / "style_exceptions.yaml"
# Words of a page, without code and tables.
MOST_WORDS = {"How to": 600, "Explanation": 900}

# What is not written, with what is written instead.
BANNED = {
    r"\bwrong labels\b|\blabels?(?: are| is)? wrong\b": "label noise, noisy labels",
    r"\btrunks?\b": "frozen backbone",
    r"(?<!learning )(?<!dropout )(?<!sampling )(?<!error )(?<!convergence )\brates?\b": "learning rate",
    r"nothing has been measured that": "we found no ...",
    r"\b(?:is|are) all that (?:is|are) trained": "only ... is trained",
    r"makes no difference that matters": "makes no practical difference",
    r"of each task's own": "for each task",
    r"\w+ (?:numbers|lines|columns) more\b": "adds ... numbers",
    r"\b[Uu]se so many\b": "use at most N",
    r"drawn by the seed": "chosen at random with the seed",
    r"where [^.,;]{1,30} is none\b": "if there is no ...",
    r"if it is not the model's": "defaults to the model's own",
    r"anything of ours": "name the thing",
    r"whatever the layer": "for every layer",
    r"for private models that": "name the condition after the noun",
    r"\b(?:not shown|never shown) to be (?:harmless|harmful)": "the positive form",
    r"\bnot un\w+": "the positive form",
    r"\bsince then\b|corrected afterwards|the default before": "no history in pages for users",
    r"\bp-values?\b|\bp [=<] ?0?\.\d": "the difference with its interval",
}
# Without "labelled" in names of other projects' functions, which are code.
BRITISH = (
    r"\b\w*(?:centre[ds]?|centring|colour\w*|behaviour\w*|favour\w*|neighbour\w*|honour\w*|fibre)\b",
    r"\b\w*(?:regularis|optimis|generalis|normalis|quantis|initialis|minimis|maximis|summaris|randomis|penalis|reparametris"
    r"|parametris|parameteris|linearis|tokenis|discretis|factoris|organis|recognis|visualis)(?:e[ds]?|ing|ations?|er[s]?)\b",
    r"\b(?:labell(?:ed|ing)|modell(?:ed|ing)|travell\w+|cancell(?:ed|ing)|grey|whilst|artefacts?|catalogues?|programmes?"
    r"|licence[ds]?|analys(?:e[ds]?|ing)|judgement)\b",
)

# Where the numbers of pages come from, besides docs/generated and the figures' files.
STUDY = "recipes/comparison/tables"
SOURCES = {
    "docs/comparing.md": [STUDY],
    "docs/flat-logistic-regression.md": [STUDY],
    "docs/critics.md": ["recipes/paper_table"],
    "docs/release.md": ["pyproject.toml", "constraints.txt"],
    "docs/precision-and-compilation.md": ["tests/test_precision.py"],
}
# Numbers that no command makes, and where they come from.
CONSTANTS = {
    "95 %": "the confidence level of every interval",
    "100 %": "all",
    "16.3": "70e9 x 16 bytes / 64, in GiB",
    "4.9": "4,096 x 128,256 x 10 bytes, in GiB",
    "0.93": "a million to the power of -2 / (4 + 384)",
    "0.000001": "the default strength at heads with many classes, LARGE_HEAD_STRENGTH of hf_fam",
}


def words_over(page: str) -> int:
    """The length of a page that is too long, or 0."""
    limit = MOST_WORDS.get(nav().get(page.removeprefix("docs/"), ""))
    return length(page) if limit is not None and length(page) > limit else 0


def untraced(page: str) -> list[str]:
    """Numbers of a page without a record."""
    return untraced_numbers(page, ["docs/generated", "docs/img", *SOURCES.get(page, [])], CONSTANTS)


COUNTS = {
    "words": words_over,
    "long_sentences": lambda page: len(long_sentences(page)),
    "banned": lambda page: len(matches(page, BANNED)),
    "untraced_numbers": lambda page: len(untraced(page)),
    "wide_code": lambda page: len(wide_code(page)),
}


def exceptions() -> dict[str, dict[str, int]]:
    """What each page may still break: rule, page, number."""
    content: Any = yaml.safe_load(EXCEPTIONS.read_text(encoding="utf-8"))
    return {rule: dict(content.get(rule) or {}) for rule in COUNTS}


def lowered(allowed: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The exceptions that are still needed."""
    pages = user_pages()
    counted = {rule: {page: count(page) for page in pages if page in allowed[rule]} for rule, count in COUNTS.items()}
    return {
        rule: {page: min(number, allowed[rule][page]) for page, number in by_page.items() if number}
        for rule, by_page in counted.items()
    }


if __name__ == "__main__":
    first = EXCEPTIONS.read_text(encoding="utf-8").splitlines()
    comments = [line for line in first if line.startswith("#")]
    EXCEPTIONS.write_text("\n".join([*comments, yaml.safe_dump(lowered(exceptions()))]), encoding="utf-8")
