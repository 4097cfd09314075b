"""Degenerate results: error rates that look like a measurement and are the sign of a broken system.

A word error rate of exactly 100 % mostly means that the system writes nothing; one above it, that it writes more than
was said, as in hallucination loops. Such results are marked in the tables.
"""

from collections.abc import Sequence

from lowrank_speech.reporting import units
from lowrank_speech.reporting.data import Table
from lowrank_speech.reporting.systems import Result, System

MARK = "†"
STOPPED = {"loop": "stopped by loops", "bound": "stopped by their token limit"}
SHARE = 0.05
"""Empty or stopped hypotheses from this share on flag a result."""


def flags(result: Result) -> list[str]:
    """What is wrong with a result; empty if nothing is."""
    found, metrics = [], result.metrics
    if result.system.type == "lid":
        matrix = result.score.get("confusion") or []
        used = [i for i in range(len(matrix)) if any(row[i] for row in matrix)]
        if len(matrix) > 1 and len(used) == 1:
            found.append(f"every segment is recognised as {result.score['languages'][used[0]]}")
        warning = result.manifests.get("backend", {}).get("metrics", {}).get("warning")
        found += [f"back end: {warning}"] if warning else []
        return found
    wer = metrics["wer"]
    if wer is not None and wer >= 1:
        found.append("WER of exactly 100 %" if wer == 1 else f"WER over 100 %: {units.percent(wer)} %")
    number = metrics["utterances"] or result.score.get("utterances")
    stopped = result.manifests.get("decode", {}).get("metrics", {}).get("stopped") or {}
    counts = {"empty": metrics["empty_hypotheses"]}
    counts |= {STOPPED.get(why, f"stopped ({why})"): count for why, count in stopped.items()}
    for what, count in counts.items():
        if number and count and count >= SHARE * number:
            verb = "is" if count == 1 else "are"
            found.append(f"{units.count(count)} of {units.count(number)} hypotheses {verb} {what}")
    return found


def flagged(systems: Sequence[System]) -> list[tuple[Result, list[str]]]:
    """The results with flags, in order."""
    return [(result, found) for s in systems for result in s.results if (found := flags(result))]


def table(systems: Sequence[System]) -> Table | None:
    """All flagged results, for the page; None if there are none."""
    rows = [(str(result), "; ".join(found)) for result, found in flagged(systems)]
    note = (
        f"Marked {MARK} in the tables. Their error rates say that something is broken, not how well the system "
        f"recognises. Flagged are WER of 100 % and more, from {100 * SHARE:g} % empty or stopped hypotheses on, and "
        "language recognisers with only one answer, and back ends that dev does not determine."
    )
    return Table("Degenerate results", ("where", "why"), tuple(rows), 2, note) if rows else None
