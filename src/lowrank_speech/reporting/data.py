"""The tables beside the results: bases, corpora, what was set aside, factorised layers.

Inputs: manifests under the experiment's folder and the set_aside.tsv files beside them (header `id reason detail`).
Output: tables of strings for the page. Figures of other stages are shown under the names that they have there.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_speech.reporting import units
from lowrank_speech.reporting.systems import System, load_manifest, number

EXAMPLES = 3
"""Utterances named per reason."""


@dataclass(frozen=True)
class Table:
    """A titled table of strings. ``text_columns``: how many columns, from the left, hold text and not figures."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    note: str = ""


def corpora_table(root: Path, corpora: Sequence[str] | None) -> Table:
    """Splits of the corpora: utterances, duration, speakers, languages. None: every corpus under ``root``/corpus."""
    names = corpora if corpora is not None else sorted(p.parent.name for p in root.glob("corpus/*/corpus.json"))
    rows, shared = [], []
    for name in names:
        numbers = load_manifest(root / "corpus" / name / "corpus.json", "corpus")["numbers"]
        for splits, count in (numbers.get("shared_speakers") or {}).items():
            shared.append(f"{name}: {count} speaker(s) stand in more than one split ({splits}).")
        for split, figures in _splits(numbers):
            seconds = number(figures.get("seconds"))
            if seconds is None and number(figures.get("hours")) is not None:
                seconds = 3600 * figures["hours"]
            rows.append(
                (
                    name,
                    split,
                    units.count(number(_size(figures.get("utterances")))),
                    units.hours(seconds),
                    units.count(number(_size(figures.get("speakers")))),
                    _languages(figures.get("languages")),
                )
            )
    header = ("corpus", "split", "utterances", "speech", "speakers", "languages")
    return Table("Splits", header, tuple(rows), 2, " ".join(shared))


def _splits(numbers: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """(split, figures) of a corpus manifest, whose ``splits`` is a mapping by name or a list with the name in it."""
    splits = numbers.get("splits", {})
    if isinstance(splits, list):
        return [(str(row.get("split", row.get("name", units.DASH))), row) for row in splits]
    return splits.items()


def _size(value: Any) -> Any:
    return len(value) if isinstance(value, list | dict) else value


def _languages(value: Any) -> str:
    """Languages as they are listed, with their number of utterances where the manifest has it."""
    if not value:
        return units.DASH
    if not isinstance(value, dict):
        return ", ".join(map(str, value)) if isinstance(value, list) else units.plain(value)
    parts = []
    for language, figures in value.items():
        count = figures.get("utterances") if isinstance(figures, dict) else figures
        parts.append(f"{language} {units.count(number(count))}" if number(count) is not None else str(language))
    return ", ".join(parts)


def set_aside_table(root: Path, corpora: Sequence[str] | None, systems: Sequence[System]) -> Table:
    """What was set aside, by place and reason, with a few of the utterances; the files list all of them.

    The same list at several systems (they share their data) stands once.
    """
    names = corpora if corpora is not None else sorted(p.parent.name for p in root.glob("corpus/*/corpus.json"))
    places = [(f"corpus {name}", root / "corpus" / name / "set_aside.tsv") for name in names]
    for stage in ("train", "decode"):
        for system in systems:
            n = system.name
            places.append((f"{stage} {n}", root / stage / n.base / n.task / n.method / "set_aside.tsv"))
    groups: dict[tuple[str, tuple[tuple[str, str, str], ...]], list[str]] = {}
    for place, path in places:
        rows = tuple(_rows(path))
        if rows:
            groups.setdefault((place.split()[0], rows), []).append(place)
    table = []
    for (_, rows), where in groups.items():
        place = where[0] if len(where) == 1 else f"{where[0]} and {len(where) - 1} more"
        for reason, count in Counter(reason for _, reason, _ in rows).most_common():
            examples = [f"{id_} ({detail})" if detail else id_ for id_, why, detail in rows if why == reason]
            shown = "; ".join(examples[:EXAMPLES]) + (" …" if count > EXAMPLES else "")
            table.append((place, reason, shown, units.count(count)))
    note = (
        "Nothing was set aside." if not table else "All of them are listed in the set_aside.tsv beside each manifest."
    )
    return Table("Set aside", ("where", "reason", "for example", "utterances"), tuple(table), 3, note)


def _rows(path: Path) -> Iterable[tuple[str, str, str]]:
    """(id, reason, detail) of a set_aside.tsv; nothing where the file is absent."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield (row.get("id") or units.DASH, row.get("reason") or units.DASH, row.get("detail") or "")


def layer_tables(systems: Sequence[System]) -> list[Table]:
    """Layer by layer, what the factorisation did: one table per base and low-rank model, columns as they are."""
    users: dict[tuple[str, str], list[System]] = {}
    for system in systems:
        n = system.name
        if system.manifests.get("factorise", {}).get("numbers", {}).get("layers"):
            users.setdefault((n.base, n.factorisation or n.method), []).append(system)
    tables = []
    for (base, _), several in users.items():
        methods = ", ".join(dict.fromkeys(system.name.method for system in several))
        numbers = several[0].manifests["factorise"]["numbers"]
        rows = numbers["layers"]
        if isinstance(rows, dict):
            rows = [{"name": name, **row} for name, row in rows.items()]
        header = list(dict.fromkeys(column for row in rows for column in row))
        header.sort(key=lambda column: column != "name")
        dense = numbers.get("left_dense") or {}
        note = "; ".join(f"{name} stays dense: {why}" for name, why in dense.items())
        cells = tuple(tuple(units.plain(row.get(column)) for column in header) for row in rows)
        titles = tuple(column.replace("_", " ") for column in header)
        tables.append(Table(f"{base}, {methods}: {len(rows)} layers", titles, cells, note=note))
    return tables


def base_table(root: Path, systems: Sequence[System]) -> Table:
    """Where the bases come from: source, pinned revision, parameters. A dash where base.json is absent or silent."""
    rows = []
    for base in dict.fromkeys(system.name.base for system in systems):
        path = root / "base" / base / "base.json"
        numbers, cfg = {}, {}
        if path.is_file():
            manifest = load_manifest(path, "base")
            numbers, cfg = manifest["numbers"], manifest.get("cfg", {})
        values = (cfg.get("family"), numbers.get("source", cfg.get("source")), numbers.get("revision"))
        rows.append((base, *map(units.plain, values), units.parameters(number(numbers.get("parameters")))))
    return Table("Bases", ("base", "family", "source", "revision", "parameters"), tuple(rows), 4)
