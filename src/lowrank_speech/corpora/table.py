"""Tables of any delimiter: CSV and TSV files with a header line, quoted or not, whose columns are guessed.

In: a folder with a table per source. Columns are recognised by their usual names (``records.NAMES``), for example
``path, sentence, client_id, locale``; ``columns`` names others. A table in which two columns could have the same role
is refused. Relative audio paths start at the table's folder. Out: utterances. The kind tsv reads tables in the exact
form of this project, without guesses.

    corpora:
      mine: {kind: table, path: /data/mine, language: en,
             splits: {train: {source: train.csv}, dev: {source: dev.csv}, test: {source: test.csv}}}
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.corpora import records
from lowrank_speech.corpora.common import SetAside
from lowrank_speech.corpora.delimited import Delimiter, read_rows
from lowrank_speech.corpora.layouts import Layout, Segment, guess_splits, located, reported
from lowrank_speech.corpora.parts import items_of_split
from lowrank_speech.corpora.records import Columns
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, settings


@settings
class Config(Layout):
    """A corpus of tables with any delimiter and any columns."""

    kind: Literal["table"] = key(REQUIRED, "CSV or TSV tables, quoted or not; columns are guessed")
    language: str | None = key(None, "language code of rows without a language")
    languages: tuple[str, ...] = key((), "languages to use, others are set aside; empty: all languages")
    columns: Columns = key(None, "names of the columns", default_factory=Columns)
    delimiter: Delimiter = key("auto", "what separates the columns: tab, comma, semicolon, bar, or auto")
    quotes: bool | None = key(
        None, "whether fields may be in double quotes; null: yes with commas and semicolons, no with tabs and bars"
    )


@reported
def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder of the tables. UserError: it or a table does not exist."""
    names = sorted({split.source for split in config.splits.values()})
    return located(config, data_root, f"tables with a header line ({', '.join(names)})", names)


@reported
def sources(config: Config, root: Path) -> list[Path]:
    """The tables."""
    return [root / source for source in sorted({split.source for split in config.splits.values()})]


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[Segment | SetAside]:
    """Yield first the rejected rows, then the utterances of one split, in the order of its table.

    UserError: a column is not clear, or an id has two different rows.
    """
    part = config.splits[split]
    yield from items_of_split(_utterances(config, root / part.source), part, seed)


def _utterances(config: Config, path: Path) -> Iterator[Segment | SetAside]:
    header, rows = read_rows(
        path, config.delimiter, config.quotes, lambda names: records.plausible(names, config.columns)
    )
    named = records.places(header, config.columns, path, config.language)
    index = {role: header.index(column) for role, column in named.items()}
    faults: list[SetAside] = []

    def good() -> Iterator[tuple[dict[str, Any], str, int]]:
        for line, values, fault in rows:
            where = f"{path} line {line}"
            if fault:
                name = values[index["id"]].strip() if "id" in index and index["id"] < len(values) else ""
                faults.append(SetAside(name or f"{path.name}:{line}", "malformed row", f"{where}: {fault}"))
            else:
                yield {role: values[place].strip() for role, place in index.items()}, where, line

    yield from records.utterances(good(), path, path.parent, config.language, config.languages)
    yield from faults


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if it contains tables with columns of usual names (``detect.py``)."""
    from lowrank_speech.corpora import tsv

    if (path / "clips").is_dir() or tsv.looks_like(path) is not None:
        return None
    tables, keys = {}, {}
    for table in sorted(p for p in path.iterdir() if p.suffix.lower() in (".csv", ".tsv", ".txt") and p.is_file()):
        try:
            header, _ = read_rows(table, "auto", None, lambda names: records.plausible(names, Columns()))
            named = records.places(header, Columns(text=""), table, "?")
            full = records.places(header, Columns(), table, "?")
        except UserError:
            continue
        tables[table.stem] = table.name
        if "language" not in named or "language" not in full:
            keys["language"] = None
    return {**keys, "splits": guess_splits(tables)} if tables else None
