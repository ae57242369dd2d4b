"""The rules for words: in pages for users, in docstrings, and in messages."""

from __future__ import annotations

import re

from support.prose import length, long_sentences, matches, nav, plain, untraced_numbers, wide_code

# Words of a page, without code and tables.
MOST_WORDS = {"Home": 300, "Start": 600, "How to": 600, "Explanation": 900, "Reference": 600, "Other tools": 900}

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
    r"\bso many\b(?! that\b)": "at most N, this many",
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
# A sentence in brackets; "(Adilova et al. 2023)" is none.
IN_BRACKETS = r"\([A-Z][^()]*[^().][.!?]\)"
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
    "docs/precision-and-compilation.md": ["tests/flatness/test_precision.py"],
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


def words_over(page: str) -> list[str]:
    """The length of a page that is too long."""
    limit, words = MOST_WORDS.get(nav().get(page.removeprefix("docs/"), "")), length(page)
    return [f"{words} words, at most {limit}"] if limit is not None and words > limit else []


def untraced(page: str) -> list[str]:
    """Numbers of a page without a record."""
    return untraced_numbers(page, ["docs/generated", "docs/img", *SOURCES.get(page, [])], CONSTANTS)


# What a page has that it should not have, by the name of the rule.
RULES = {
    "words": words_over,
    "long sentences": long_sentences,
    "banned": lambda page: matches(page, BANNED),
    "sentences in brackets": lambda page: re.findall(IN_BRACKETS, plain(page)),
    "untraced numbers": untraced,
    "wide code": wide_code,
}
