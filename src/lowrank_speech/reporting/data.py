"""Further tables of the report: bases, corpora, utterances set aside, shared speakers, factorised layers.

Inputs: manifests under the experiment's folder, and the set_aside.tsv files beside them (header `id reason detail`).
Output: tables of strings for the page. Metrics keep the names that they have in their stage.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank_speech.reporting import units
from lowrank_speech.reporting.manifests import finite, load_manifest
from lowrank_speech.reporting.systems import System

EXAMPLES = 3
"""Number of utterances to name per reason."""


@dataclass(frozen=True)
class Table:
    """A table of strings with a title. ``text_columns``: number of columns on the left with text instead of numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    note: str = ""


def splits_of(root: Path, corpora: Mapping[str, Sequence[str]] | None) -> list[tuple[str, str]]:
    """(corpus, split) of the ``corpora`` to describe; None: all splits under ``root``/corpus that have a manifest."""
    if corpora is not None:
        return [(corpus, split) for corpus, splits in corpora.items() for split in splits]
    # Skip {split}.cost.json and other files with several suffixes.
    found = (path for path in root.glob("corpus/*/*.json") if "." not in path.stem)
    return sorted((path.parent.name, path.stem) for path in found)


def corpora_table(root: Path, splits: Sequence[tuple[str, str]]) -> Table:
    """Utterances, duration, speakers and languages of each split."""
    rows = []
    for corpus, split in splits:
        metrics = load_manifest(root / "corpus" / corpus / f"{split}.json", "corpus")["metrics"]
        spoken = metrics.get("languages") or {}
        languages = ", ".join(f"{language} {units.count(finite(n))}" for language, n in spoken.items())
        counts = (units.count(finite(metrics.get("utterances"))), units.hours(finite(metrics.get("seconds"))))
        rows.append((corpus, split, *counts, units.count(finite(metrics.get("speakers"))), languages or units.DASH))
    return Table("Splits", ("corpus", "split", "utterances", "speech", "speakers", "languages"), tuple(rows), 2)


def origins_table(root: Path, tasks: Iterable[str]) -> Table | None:
    """Sources and sessions that splits of a language recognition task share; None if there are none."""
    rows = []
    for task in tasks:
        path = root / "overlap" / task / "overlap.json"
        metrics = load_manifest(path, "overlap")["metrics"] if path.is_file() else {}
        for what in ("sources", "sessions"):
            for row in metrics.get(f"shared_{what}") or ():
                sides = (f"{row.get(side + 'role')}: {row.get(side + 'split')}" for side in ("", "other_"))
                shown = ", ".join(map(str, row.get("examples") or ()))
                rows.append((task, what, *sides, shown, units.count(finite(row.get(what)))))
    header = ("task", "what", "split", "and split", "for example", "number")
    note = "The task allows it (allow_shared). A language recogniser may have learnt them instead of languages."
    return Table("Shared sources and sessions", header, tuple(rows), 5, note) if rows else None


def overlap_table(root: Path, tasks: Iterable[str]) -> Table | None:
    """Speakers that splits of a task share, from the stage overlap; None if it did not run."""
    rows, checked = [], []
    for task in tasks:
        path = root / "overlap" / task / "overlap.json"
        if not path.is_file():
            continue
        checked.append(task)
        for row in load_manifest(path, "overlap")["metrics"].get("shared_speakers") or ():
            sides = (f"{row.get(side + 'role')}: {row.get(side + 'split')}" for side in ("", "other_"))
            shown = ", ".join(map(str, row.get("examples") or ()))
            rows.append((task, *sides, shown, units.count(finite(row.get("speakers")))))
    if not checked:
        return None
    note = "Results on these test sets do not hold for unknown speakers." if rows else ""
    apart = [task for task in checked if task not in {row[0] for row in rows}]
    if apart:
        note = f"{note} In {', '.join(apart)}, splits of different roles share no speaker.".strip()
    return Table("Shared speakers", ("task", "split", "and split", "for example", "speakers"), tuple(rows), 4, note)


def set_aside_table(root: Path, splits: Sequence[tuple[str, str]], systems: Sequence[System]) -> Table:
    """Utterances set aside, by place and reason, with examples. The files set_aside.tsv list all of them.

    A list that is the same in several places (systems share data) appears once.
    """
    places = [
        (f"corpus {corpus}/{split}", root / "corpus" / corpus / f"{split}.set_aside.tsv") for corpus, split in splits
    ]
    places += [(f"train {s.name}", root / "train" / str(s.name) / "set_aside.tsv") for s in systems]
    places += [(f"decode {r}", root / "decode" / str(r) / "set_aside.tsv") for s in systems for r in s.results]
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
    note = "The files set_aside.tsv beside the manifests list all utterances." if table else "Nothing was set aside."
    return Table("Set aside", ("where", "reason", "for example", "utterances"), tuple(table), 3, note)


def _rows(path: Path) -> Iterable[tuple[str, str, str]]:
    """Yield (id, reason, detail) of a set_aside.tsv; nothing if the file does not exist."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield (row.get("id") or units.DASH, row.get("reason") or units.DASH, row.get("detail") or "")


def emptied_table(systems: Sequence[System]) -> Table | None:
    """References of which the normaliser of scoring left nothing, for each test set; None if there are none."""
    rows = {}
    for result in (result for system in systems for result in system.results):
        emptied = result.score.get("emptied_references") or ()
        if emptied:
            shown = "; ".join(f"{one.get('id')} ({one.get('ref')})" for one in emptied[:EXAMPLES])
            shown += " …" if len(emptied) > EXAMPLES else ""
            rows.setdefault((result.system.task, result.test), (shown, units.count(float(len(emptied)))))
    if not rows:
        return None
    note = "They are scored: every word of their hypotheses is an insertion. score.json lists all of them."
    table = tuple((*where, *row) for where, row in rows.items())
    return Table("References that normalise to nothing", ("task", "test", "for example", "utterances"), table, 3, note)


def stopped_table(systems: Sequence[System]) -> Table | None:
    """Hypotheses that the decoder stopped before the end of text; None if there are none."""
    rows = []
    for result in (result for system in systems for result in system.results):
        for why, count in (result.manifests.get("decode", {}).get("metrics", {}).get("stopped") or {}).items():
            what = {"bound": "reached its token limit", "loop": "repeats itself"}.get(why, why)
            rows.append((str(result), what, units.count(finite(count)), units.count(result.metrics["utterances"])))
    note = "The files hypotheses.jsonl of the stage decode mark them. They are scored like all others."
    header = ("where", "why", "hypotheses", "of")
    return Table("Hypotheses that the decoder stopped", header, tuple(rows), 2, note) if rows else None


def cut_table(systems: Sequence[System]) -> Table | None:
    """How far low-rank models are from their dense bases before any training; None if calibration measured none."""
    rows: dict[tuple[str, str], list[str]] = {}
    for system in systems:
        name, metrics = system.name, system.manifests.get("factorise", {}).get("metrics", {})
        found, warnings = metrics.get("divergence"), metrics.get("warnings") or []
        if found or warnings:
            key = (name.base, name.factorisation or name.method)
            loss, agreement = finite((found or {}).get("loss")), finite((found or {}).get("agreement"))
            shown = ("-" if loss is None else f"{loss:.3f}", units.percent(agreement))
            cells = ["", "; ".join(warnings) or "-", units.percent(finite(metrics.get("reduction"))), *shown]
            row = rows.setdefault(key, cells)
            row[0] = ", ".join(dict.fromkeys(filter(None, [*row[0].split(", "), name.method])))
    note = (
        "Before training, on speech that calibration did not see: loss above the dense model's on its own transcripts, "
        "in nats per token (per frame with CTC; without a head, the error of the encoder states over their power), and "
        "the share of tokens for which both prefer the same one."
    )
    header = ("base", "methods", "what to expect", "fewer parameters, %", "loss above dense", "same token, %")
    table = tuple((base, *cells) for (base, _), cells in rows.items())
    return Table("Low-rank models before training", header, table, 3, note) if rows else None


def layer_tables(systems: Sequence[System]) -> list[Table]:
    """Layer-by-layer results of factorisation: one table per base and low-rank model, with the columns of the stage."""
    users: dict[tuple[str, str], list[System]] = {}
    for system in systems:
        n = system.name
        if system.manifests.get("factorise", {}).get("metrics", {}).get("layers"):
            users.setdefault((n.base, n.factorisation or n.method), []).append(system)
    tables = []
    for (base, _), several in users.items():
        methods = ", ".join(dict.fromkeys(system.name.method for system in several))
        metrics = several[0].manifests["factorise"]["metrics"]
        rows = metrics["layers"]
        # Leave out the spectrum, a list of values, which the command line plots.
        header = list(dict.fromkeys(column for row in rows for column in row if column != "spectrum"))
        header.sort(key=lambda column: column != "name")
        dense = metrics.get("left_dense") or {}
        note = "; ".join(f"{name} stays dense: {why}" for name, why in dense.items())
        cells = tuple(tuple(units.plain(row.get(column)) for column in header) for row in rows)
        titles = tuple(column.replace("_", " ") for column in header)
        tables.append(Table(f"{base}, {methods}: {len(rows)} layers", titles, cells, note=note))
    return tables


def base_table(root: Path, systems: Sequence[System]) -> Table:
    """Source, pinned revision, window and parameters of the bases; a dash if base.json does not have them."""
    rows = []
    for base in dict.fromkeys(system.name.base for system in systems):
        path = root / "base" / base / "base.json"
        metrics, cfg = {}, {}
        if path.is_file():
            manifest = load_manifest(path, "base")
            metrics, cfg = manifest["metrics"], manifest.get("cfg", {})
        values = (cfg.get("family"), metrics.get("source", cfg.get("source")), metrics.get("revision"))
        window = finite(metrics.get("window", cfg.get("window")))
        shown = "its own" if cfg and window is None else units.DASH if window is None else f"{window:g} s"
        rows.append((base, *map(units.plain, values), shown, units.parameters(finite(metrics.get("parameters")))))
    note = "Window: to how many seconds a model pads; `its own`: as published (Whisper: 30 s), or none."
    return Table("Bases", ("base", "family", "source", "revision", "window", "parameters"), tuple(rows), 5, note)
