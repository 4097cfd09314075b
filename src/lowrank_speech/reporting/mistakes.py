"""Errors of the systems: the most frequent word errors and the worst utterances, or the confusion matrix of languages.

Input: the metrics of score.json (`scoring.asr.score`, `scoring.lid.score`). Output: tables of strings for the page.
"""

from collections.abc import Sequence
from typing import Any

from lowrank_speech.reporting import units
from lowrank_speech.reporting.data import Table
from lowrank_speech.reporting.manifests import finite
from lowrank_speech.reporting.systems import Result, System


def mistakes(systems: Sequence[System], most: int) -> list[tuple[str, list[Table]]]:
    """(where, tables) for each result with errors to show; ``most``: maximum number of rows of word errors."""
    found = []
    for system in systems:
        n = system.name
        for result in system.results:
            tables = _words(result.score, most) if n.type == "asr" else _matrix(result.score)
            tables += _by_language(result)
            where = [n.task, n.base, n.method]
            where += [result.decoder] * (len(system.decoders) > 1) + [result.test] * (len(system.tests) > 1)
            if tables:
                found.append((", ".join(where), tables))
    return found


def _words(score: dict[str, Any], most: int) -> list[Table]:
    tables = []
    confusions = score.get("confusions") or {}
    headers = {
        "substitutions": ("reference", "hypothesis", "times"),
        "deletions": ("deleted", "times"),
        "insertions": ("inserted", "times"),
    }
    for kind, header in headers.items():
        rows = tuple((*map(str, row[:-1]), units.count(finite(row[-1]))) for row in confusions.get(kind) or ())
        if rows:
            tables.append(Table(f"Most frequent {kind}", header, rows[:most], len(header) - 1))
    worst = tuple(
        (str(row.get("id")), units.percent(finite(row.get("wer")), 0), str(row.get("ref")), str(row.get("hyp")))
        for row in score.get("worst") or ()
    )
    if worst:
        header = ("utterance", "WER %", "reference", "hypothesis")
        # The WER is between two text columns, where it reads better if it is aligned to the left.
        tables.append(Table("Utterances with the most errors", header, worst[:most], len(header)))
    return tables


def _matrix(score: dict[str, Any]) -> list[Table]:
    languages, matrix = score.get("languages"), score.get("confusion")
    if not languages or not matrix:
        return []
    rows = []
    for language, counts in zip(languages, matrix, strict=True):
        rows.append((str(language), *(f"{c:g}" if c else "·" for c in counts), f"{sum(counts):g}"))
    note = "Rows: true language; columns: recognised language. If languages tie, the segment is divided between them."
    return [Table("Confusion matrix", ("", *map(str, languages), "sum"), tuple(rows), note=note)]


def _by_language(result: Result) -> list[Table]:
    by_language = result.score.get("by_language") or {}
    if not by_language:
        return []
    kind = result.system.type
    keys = {"asr": {"wer": "WER %", "cer": "CER %"}, "lid": {"accuracy": "accuracy %", "eer": "EER %"}}[kind]
    size = "utterances" if kind == "asr" else "segments"
    rows = tuple(
        (
            str(language),
            units.count(finite(figures.get(size))),
            *(units.percent(finite(figures.get(key))) for key in keys),
            *(units.interval(*_ends(figures, key)) for key in list(keys)[:1] if kind == "asr"),
        )
        for language, figures in by_language.items()
    )
    header = ("language", size, *keys.values(), *(["WER interval"] if kind == "asr" else []))
    return [Table("By language", header, rows)]


def _ends(figures: dict[str, Any], key: str) -> tuple[float | None, float | None]:
    low, high = (figures.get("interval") or {}).get(key) or (None, None)
    return finite(low), finite(high)
