"""The full tables of the first protocol, from its records."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .carrying import Carried, carry, compared, places
from .confirmation import by_task, duels, title
from .paired import Difference
from .questions import answers, read_questions
from .records import DEFAULTS
from .summary import Choice, OneForAll, Record, Row, choose, group, nll, one_for_all, rows, score
from .verdict import LEVEL, Verdict, judge

# Plans whose runs are compared across learning rates, by questions.yaml, and not at equal settings.
OWN_RATES = ("confirm_mlp", "confirm_linear_own", "confirm_heads_own")

TABLES_HEADER = """\
# The full tables

Made by `python recipes/comparison/report.py` from the results in `recipes/comparison/results`; do not edit.
`recipes/comparison/README.md` tells how to repeat or extend them.

Every method is tried with a grid of configurations; the one with the best mean metric on the validation part (ties:
the best likelihood) is reported, on the test part. A seed fixes the training examples, the initial weights and the
order of the batches, so methods are compared pair by pair: *t* and *W* are the p-values of the two-sided paired t test
and of the Wilcoxon signed-rank test over seeds, not corrected for the number of comparisons. With five seeds W cannot
fall below .06. NLL is in nats, smaller is better; *scaled*: after a temperature fitted on the validation part. *Cost*
is processor time of training, relative to plain training. The metric is accuracy, for CoLA the Matthews correlation,
times 100.

| file | runs |
| --- | --- |
"""


def tables(records: list[Record], questions: Path | None) -> dict[str, str]:
    """Return the full tables by file name: a file a regime, the questions, if any, and an index."""
    texts, index = {}, [TABLES_HEADER.rstrip()]
    if questions:
        texts["questions.md"] = "\n".join([question_tables(records, questions), *carried_over(records)])
        index.append("| [questions.md](questions.md) | one configuration against another, question by question |")
    for regime, members in sorted(group(records, lambda r: r["regime"]).items()):
        sections = [
            f"# {regime}\n\n[How to read these tables](README.md).\n",
            *confirmations(decided_beforehand(members)),
        ]
        for (settings, _), some in sorted(group(members, section_key).items(), key=lambda item: item[0][1]):
            sections += section(settings, some)
        texts[f"{regime}.md"] = "\n".join(sections)
        index.append(f"| [{regime}.md]({regime}.md) | {len(members)} |")
    texts["README.md"] = "\n".join([*index, "", provenance(records)])
    return texts


def decided_beforehand(records: list[Record]) -> list[Record]:
    """Return the runs of confirmations at equal settings, which the rules in README.md judge."""
    return [r for r in records if not r["exploratory"] and not r["plan"].startswith(OWN_RATES)]


def in_brief(records: list[Record]) -> str:
    """What the rules say of every configuration that was confirmed, or not, in one table."""
    lines = [
        "## In brief\n",
        "Every configuration that was decided on beforehand, against plain training, over all tasks and seeds of each "
        "kind of training: metric in points, NLL in nats, two-sided paired t tests. *Bound*: lower end of the "
        "one-sided 95 % interval of the task where it is lowest. **Harmless**: every bound is above -0.5 points. "
        f"**Better** than plain: harmless, and the metric is higher at p < {LEVEL:g}. Better or worse than a rival: "
        "the metric differs at that level. The [full tables](#the-full-tables) list the rivals. They also have stored "
        "text features with a learning rate for each method, which other pages report first.\n",
        "| trained | FAM | pairs | metric | t | NLL | t | bound | verdict | better than | worse than |",
        "| --- | --- |" + " ---: |" * 6 + " --- | --- | --- |",
    ]
    for name, members in sorted(group(records, comparison_name).items()):
        if any("diverged" in r for r in members):
            lines.append(f"| {name} | runs diverged: no verdict" + " |" * 10)
            continue
        for champion in sorted({title(r) for r in members if r["method"] == "fam"}):
            verdict = judge(members, champion)
            if verdict:
                lines.append("| " + " | ".join([name, *brief(verdict)]) + " |")
    return "\n".join(lines) + "\n"


def brief(verdict: Verdict) -> list[str]:
    plain, worst = verdict.plain, verdict.worst
    bound = "none" if worst is None else f"{signed(100 * verdict.bounds[worst], 2)} ({worst})"
    words = ["harmless"] * verdict.harmless + ["better"] * verdict.better_than_plain
    return [
        verdict.champion,
        str(plain.metric.pairs),
        *test_cells(plain.metric, 100, 2)[:2],
        *test_cells(plain.nll, 1, 3)[:2],
        "; ".join([bound, *(f"{task}: one seed, not judged" for task in verdict.tasks_with_one_seed)]),
        " and ".join(words) or "neither",
        *("; ".join(names) for names in (verdict.better, verdict.worse)),
    ]


def confirmations(records: list[Record]) -> Iterable[str]:
    """The paired tests that the rules in README.md name, a section a regime and setting of FAM."""
    for name, members in sorted(group(records, comparison_name).items()):
        champions = sorted({title(r) for r in members if r["method"] == "fam"})
        diverged = sorted({title(r) for r in members if "diverged" in r})
        if diverged:
            missing = f"Runs of {', '.join(diverged)} diverged, so pairs are missing: no tests."
            yield f"## Decided beforehand: {name}\n\n{missing}\n"
            continue
        for champion in champions:
            yield f"## Decided beforehand: {name}, {champion}\n\n{duel_table(members, champion)}"


def comparison_name(record: Record) -> str:
    """Return the name of the comparison that a run belongs to: regime, trained part, learning rate.

    Where all of a text model is trained, or the head alone, every task has its own tuned rate. Each data set of images
    had a confirmation of its own, some of them at two rates.
    """
    settings, kind = record["settings"], record["regime"]
    rate = f", learning rate {settings.get('learning_rate', 0):g}"
    if kind in ("small_cnn", "scratch_images", "scratch_vit", "finetune_images", "frozen_images"):
        return f"{kind}, {record['task'].split('-')[0]}" + ("" if kind == "frozen_images" else rate)
    if settings.get("hidden") == "none":
        return f"{kind}, linear, one rate for all tasks"
    if kind in ("frozen_mlp", "frozen_head"):
        return f"{kind}, learning rate not tuned"
    part = settings.get("trainable", "all")
    if part == "all":
        return kind
    return f"{kind} {part}" + (f", {settings['epochs']} epochs" if part == "classifier" else rate)


def duel_table(records: list[Record], champion: str) -> str:
    lines = [
        "Differences in favour of this configuration, over all tasks and seeds: metric in points, NLL in nats (less "
        "is better). *t*: two-sided paired t test. The rules are in recipes/comparison/README.md.\n",
        "| against | pairs | metric | t | W | NLL | t | W | NLL scaled | t | W |",
        "| --- |" + " ---: |" * 10,
    ]
    for duel in sorted(duels(records, champion), key=lambda d: d.metric.mean):
        cells = [duel.rival, str(duel.metric.pairs), *test_cells(duel.metric, 100, 2)]
        lines.append(
            "| " + " | ".join([*cells, *test_cells(duel.nll, 1, 3), *test_cells(duel.nll_scaled, 1, 3)]) + " |"
        )
    lines += [
        "",
        "| task | seeds | metric against plain | lower end of its one-sided 95 % interval |",
        "| --- |" + " ---: |" * 3,
    ]
    for task, against in by_task(records, champion, "plain").items():
        lines.append(f"| {task} | {against.pairs} | {signed(100 * against.mean, 2)} | {signed(100 * against.low, 2)} |")
    return "\n".join(lines) + "\n"


def question_tables(records: list[Record], file: Path) -> str:
    """Return a table a question."""
    lines = [
        "# Question by question\n",
        "What one configuration changes against another with the same data, weights and batches, over all tasks and "
        "seeds that both have: metric in points, NLL in nats (less is better), *t*: two-sided paired t test, not "
        "corrected for their number; *bound*: lower end of the one-sided 95 % interval of the task where it is lowest. "
        "Most of these runs are exploratory: `questions.yaml` names them.\n",
    ]
    for question in read_questions(file):
        settings = "".join(f", {name} {formatted(value)}" for name, value in question.settings.items())
        lines += [
            f"## {question.question}\n",
            f"{question.regime}{settings}; {', '.join(question.tasks) or 'all tasks'}.\n",
            "| | against | tasks | pairs | metric | t | bound | NLL | t | NLL scaled | t |",
            "| --- | --- |" + " ---: |" * 9,
        ]
        for answer in answers(question, records):
            duel = answer.duel
            cells = [answer.of, duel.rival, str(len(answer.tasks)), str(duel.metric.pairs)]
            low = "" if answer.worst is None else f"{signed(100 * answer.tasks[answer.worst].low, 2)} ({answer.worst})"
            cells += [*test_cells(duel.metric, 100, 2)[:2], low]
            lines.append(
                "| "
                + " | ".join([*cells, *test_cells(duel.nll, 1, 3)[:2], *test_cells(duel.nll_scaled, 1, 3)[:2]])
                + " |"
            )
        lines.append("")
    return "\n".join(lines)


def carried_over(records: list[Record]) -> Iterable[str]:
    """Whether the best strength of a layer serves another as lambda or as delta; nothing if that was not run."""
    layers = places(records)
    everywhere = list(carry(layers))
    if not everywhere:
        return
    yield (
        "\n## Does a strength carry over to layers of another size?\n\n"
        f"As λ, or as δ = √(2mλ)? {everywhere[0].target.regime}; the λ that is best on validation at one layer, taken "
        "to every other one of the same task and another m, as it is or as the λ of the same δ. Metric in points and "
        "NLL in nats on test; a pair is a task and a seed, the mean over all that was carried there. Exploratory; the "
        "rule was written down first.\n\n"
        "| carried | cases | pairs | δ against λ | t | NLL | t | λ against plain | δ against plain | own best against "
        "plain |\n| --- |" + " ---: |" * 9
    )
    views: dict[str, list[Carried]] = {
        "everywhere": everywhere,
        "to another width of the same layer": [c for c in everywhere if c.source.layer == c.target.layer],
        "to another layer of the same network": [c for c in everywhere if c.source.width == c.target.width],
    }
    for name, cases in ((name, cases) for name, cases in views.items() if cases):
        metric, likelihood = compared(cases, "delta", "lambda")
        cells = [
            name,
            str(len(cases)),
            str(metric.pairs),
            *test_cells(metric, 100, 2)[:2],
            *test_cells(likelihood, 1, 3)[:2],
        ]
        for way in ("lambda", "delta", "own"):
            change, nats = compared(cases, way, "plain")
            cells.append(f"{signed(100 * change.mean, 2)} / {signed(nats.mean, 3)}")
        yield "| " + " | ".join(cells) + " |"
    yield (
        "\nThe λ that is best on validation at each layer (0, 2: the hidden ones, Gauss-Newton probes), its δ, and "
        "what it changes on test:\n\n| task | layer | width | m | λ | δ | metric | NLL |\n| --- | --- |" + " ---: |" * 6
    )
    for place in layers:
        metric, likelihood = place.gain
        cells = [place.task, place.layer, str(place.width), str(place.m), f"{place.best:g}"]
        cells += [f"{math.sqrt(2 * place.m * place.best):.2g}", signed(100 * metric, 2), signed(likelihood, 3)]
        yield "| " + " | ".join(cells) + " |"
    spreads = ", ".join(
        f"{task} {decades(p.best for p in members):.2f} and {decades(p.best * p.m for p in members):.2f}"
        for task, members in ((t, list(some)) for t, some in itertools.groupby(layers, lambda place: place.task))
    )
    yield f"\nStandard deviation of the best λ and of the best δ² in decades: {spreads}.\n"


def decades(values: Iterable[float]) -> float:
    """Standard deviation of the logarithm to base ten."""
    return statistics.stdev(math.log10(value) for value in values)


def section_key(record: Record) -> tuple[str, bool]:
    """Return the settings, and whether the run is exploratory: runs that agree in both share a section."""
    settings = ", ".join(f"{k} {formatted(v)}" for k, v in record["settings"].items())
    return settings, record["exploratory"]


def changed_settings(record: Record) -> str:
    """The settings that are not the regime's own, to tell figures apart."""
    own = DEFAULTS[record["regime"]]
    return "-".join(f"{k}-{formatted(v)}" for k, v in record["settings"].items() if own.get(k) != v)


def formatted(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def section(settings: str, records: list[Record]) -> Iterable[str]:
    confirmed = "" if records[0]["exploratory"] else "confirmation"
    name = " ".join(filter(None, [records[0]["regime"], changed_settings(records[0]), confirmed]))
    yield f"## {name}\n\nSettings: {settings}.\n"
    if any(r["exploratory"] for r in records):
        share = sum(r["exploratory"] for r in records)
        yield f"**Exploratory**: {share} of these {len(records)} runs looked around and decided nothing beforehand.\n"
    for task, members in sorted(group(records, lambda r: r["task"]).items()):
        yield f"### {name}: {task}\n\n{task_table(rows(members), members[0]['metric'])}"
    candidates = one_for_all(records)
    if candidates:
        table = one_table(candidates, choose(one_for_all(records, "validation")))
        yield f"### {name}: one configuration for all tasks\n\n{table}"


def task_table(table: list[Row], metric: str) -> str:
    lines = [
        f"| method | configuration | tried | seeds | {metric} | change | t | W | NLL | change | t | W | scaled | ECE | "
        "train loss | cost |",
        "| --- | --- |" + " ---: |" * 14,
    ]
    for row in table:
        if not row.records:
            lines.append(f"| {row.family} | all {row.tried} diverged" + " |" * 15)
            continue
        tried = f"{row.tried}" + (f" ({row.diverged} runs diverged)" if row.diverged else "")
        cells = [row.family, row.chosen, tried, str(len(row.records))]
        cells += [plus_minus(*(100 * v for v in row.mean(score)), digits=1), *test_cells(row.metric, 100, 1)]
        cells += [plus_minus(*row.mean(nll), digits=3), *test_cells(row.nll, 1, 3)]
        cells += [number(row.mean(value)[0], 3) for value in (scaled, ece, lambda r: r["train_loss"])]
        lines.append("| " + " | ".join([*cells, number(row.cost, 2)]) + " |")
    return "\n".join(lines) + "\n"


def one_table(candidates: list[OneForAll], chosen: dict[str, Choice]) -> str:
    tasks = sorted(candidates[0].by_task)
    lines = [
        "Change of metric / NLL against plain training on the test part; *all*: with the paired t test over tasks and "
        "seeds; *worst*: the lowest metric of a task. **Bold**: what the rule *hurts nowhere (no task loses more than "
        "half a point), then the best mean NLL* takes on the validation part. †: **every** configuration of the method "
        "loses more than that on some task of the validation part, and this one loses least.\n",
        "| method | configuration | " + " | ".join(tasks) + " | worst | all: metric | t | all: NLL | t |",
        "| --- | --- |" + " ---: |" * (len(tasks) + 5),
    ]
    for c in candidates:
        taken = chosen.get(c.family)
        mark = f"**{c.chosen}**" + ("" if taken and taken.harmless else " †")
        cells = [c.family, mark if taken and taken.chosen == c.chosen else c.chosen]
        for task in tasks:
            m, v = c.by_task.get(task, (math.nan, math.nan))
            cells.append(f"{signed(100 * m, 1)} / {signed(v, 3)}")
        cells.append(f"{c.diverged} diverged" if c.diverged else signed(100 * c.worst, 1))
        cells += [*test_cells(c.metric, 100, 1)[:2], *test_cells(c.nll, 1, 3)[:2]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def provenance(records: list[Record]) -> str:
    revisions = sorted({r.get("revision", "unknown") for r in records})
    versions = sorted({", ".join(f"{k} {v}" for k, v in r.get("versions", {}).items()) for r in records})
    return (
        f"## Where this comes from\n\n{len(records)} runs; revisions {', '.join(revisions)} (+: with changes that were "
        f"not committed then); {'; '.join(versions)}.\n"
    )


def scaled(record: Record) -> float:
    return record["test"]["nll_scaled"]


def ece(record: Record) -> float:
    return record["test"]["ece"]


def test_cells(difference: Difference | None, scale: float, digits: int) -> list[str]:
    if difference is None:
        return ["", "", ""]
    p_values = (p_value(difference.t), p_value(difference.wilcoxon))
    return [signed(scale * difference.mean, digits), *p_values]


def p_value(p: float) -> str:
    return "" if math.isnan(p) else "<.001" if p < 0.001 else f"{p:.3f}".replace("0.", ".", 1)


def number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:+.{digits}f}"


def plus_minus(mean: float, deviation: float, digits: int) -> str:
    return number(mean, digits) + ("" if math.isnan(deviation) else f" ± {deviation:.{digits}f}")
