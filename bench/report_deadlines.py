"""How punctual is the deadline, and which one suits which model?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import histograms, plots
from .page import Part, ms, table
from .plots import brief
from .scenarios import inside_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .scenarios import Json, Scenario
    from .words import Words


def overshoot_parts(scenarios: Sequence[Scenario], cases: Sequence[Json], words: Words) -> list[Part]:
    """Lists of ``pipeline`` that ended by their deadline, and many deadlines at once, of ``deadline``."""
    curves = []
    for scenario in scenarios:
        loads = scenario.ours["loads"] if scenario.ours else ()
        texts = [inside["overshoot"] for load in loads for inside in inside_of(load) if inside.get("overshoot")]
        histogram = histograms.merged(texts)
        if histogram.get_total_count():
            curves.append((f"{words.term(scenario.title)} · {words.term(scenario.broker)}", histogram))
    cases = sorted((case for case in cases if "simultaneous" in case), key=lambda case: case["simultaneous"])
    together = [
        plots.Together(
            case["simultaneous"],
            case["variant"],
            case["ready_p50_ms"],
            case["ready_p99_ms"] if histograms.holds(case["lists"], 99) else None,
            case["ready_p100_ms"],
        )
        for case in cases
    ]
    if not curves and not together:
        return []
    columns = [words("col_at_once"), words("col_what"), words("col_lists"), words("col_ready")]
    rows = [
        [
            f"{one.batches:,}",
            words.term(one.what),
            f"{case['lists']:,}",
            f"{brief(one.p50)} / {ms(one.p99)} / {brief(one.max)}",
        ]
        for one, case in zip(together, cases, strict=True)
    ]
    return [
        Part(
            key="overshoot",
            title=words("overshoot_lists"),
            headline=True,
            finding=_overshoot_finding(curves, together, words),
            # A point below a microsecond cannot be on a scale of logarithms.
            figure=plots.overshoot(curves, [one for one in together if one.p50 > 0], words),
            alt=words("overshoot_alt"),
            table=table(columns, rows, left=(0, 1)) if rows else "",
        )
    ]


def _overshoot_finding(curves: Sequence[tuple[str, Any]], together: Sequence[plots.Together], words: Words) -> str:
    parts = []
    if curves:
        whole = histograms.summary(histograms.merged(histograms.encoded(histogram) for _, histogram in curves))
        parts.append(
            words(
                "finding_overshoot" if whole["p99_ms"] is not None else "finding_overshoot_few",
                lists=f"{whole['samples']:,}",
                p99=ms(whole["p99_ms"]),
                max=brief(whole["max_ms"]),
            )
        )
    ours = [one for one in together if one.what == "tuned"] or [one for one in together if one.what != "textbook"]
    textbook = {one.batches: one for one in together if one.what == "textbook"}
    most = max(ours, key=lambda one: one.batches, default=None)
    beside = max((one for one in ours if one.batches in textbook), key=lambda one: one.batches, default=None)
    if most is not None and most is not beside:
        parts.append(words("finding_together", number=f"{most.batches:,}", max=brief(most.max)))
    if beside is not None:
        theirs = textbook[beside.batches].max
        parts.append(
            words(
                "finding_textbook",
                number=f"{beside.batches:,}",
                max=brief(beside.max),
                theirs=brief(theirs),
                ratio=brief(theirs / beside.max),
            )
        )
    return words.sentence(parts)


def timeouts_parts(cases: Sequence[Json], words: Words) -> list[Part]:
    """One plot of all models."""
    by_model: dict[str, list[Json]] = {}
    for case in cases:
        by_model.setdefault(case["model"], []).append(case)
    models, parts = [], []
    for name, of_model in by_model.items():
        answered = sorted((case["deadline_seconds"], case["answered_ratio"]) for case in of_model)
        recommended = next(
            ((case["deadline_seconds"], case["answered_ratio"]) for case in of_model if case["recommended"]), None
        )
        models.append(plots.Model(name, answered, recommended))
        if recommended:
            parts.append(_recommended(name, answered, recommended, words))
    if not models:
        return []
    columns = [words(f"col_{name}") for name in ("model", "deadline", "choice", "answered", "of_able", "mean_seconds")]
    rows = [
        [
            words("model", name=words.term(case["model"]), ms=brief(1000 * case["median_seconds"])),
            f"{case['deadline_seconds']:g} s",
            words("recommended") if case["recommended"] else "",
            f"{100 * case['answered_ratio']:.2f} %",
            f"{100 * case['answered_of_able_ratio']:.2f} %",
            f"{case['mean_seconds']:.2f} s",
        ]
        for case in cases
    ]
    return [
        Part(
            key="timeouts",
            title=words("timeouts_lists"),
            headline=True,
            finding=words.sentence(parts),
            note=words("note_never"),
            figure=plots.deadlines(models, words),
            alt=words("timeouts_alt"),
            table=table(columns, rows, left=(0, 2)),
        )
    ]


def _recommended(
    name: str, answered: Sequence[tuple[float, float]], recommended: tuple[float, float], words: Words
) -> str:
    seconds, share = recommended
    nearest = [pair for pair in answered if pair[0] < seconds][-1:] + [pair for pair in answered if pair[0] > seconds][
        :1
    ]
    return words(
        "finding_recommended",
        model=words.term(name),
        seconds=f"{seconds:g}",
        share=f"{100 * share:.2f}",
        others=", ".join(f"{other:g} s {_signed(100 * (there - share))}" for other, there in nearest) or "–",
    )


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "\N{MINUS SIGN}")
