"""Data sets of Hugging Face on disk: what ``save_to_disk`` wrote, the files of the cache, or Parquet files.

In: per split a folder (``train/`` of a DatasetDict) or a name that files have (``train`` for
``data/train-00000-of-00002.parquet``). The audio is a column of bytes or of paths; relative paths start at the corpus's
folder. Other columns are recognised by their usual names (``records.NAMES``), or named by ``columns``. Out: utterances;
stored audio is written to files, without decoding. Needs the package pyarrow.

    corpora:
      mine: {kind: datasets, path: /data/my_dataset, language: en,
             splits: {train: {source: train}, dev: {source: validation}, test: {source: test}}}
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lowrank_speech.corpora import arrow, records
from lowrank_speech.corpora.common import SetAside
from lowrank_speech.corpora.layouts import Layout, Segment, guess_splits, located, reported
from lowrank_speech.corpora.parts import items_of_split
from lowrank_speech.corpora.records import Columns
from lowrank_speech.corpora.stored import Store, stored_audio
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, settings

if TYPE_CHECKING:
    import pyarrow

GENDER = "gender"


@settings
class Config(Layout):
    """A corpus of Hugging Face data sets."""

    kind: Literal["datasets"] = key(REQUIRED, "Hugging Face data sets on disk: save_to_disk, Arrow or Parquet files")
    language: str | None = key(None, "language code of rows without a language")
    languages: tuple[str, ...] = key((), "languages to use, others are set aside; empty: all languages")
    columns: Columns = key(None, "names of the columns", default_factory=Columns)


@reported
def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder. UserError: it or the files of a split do not exist."""
    root = located(config, data_root, "a data set: folders that save_to_disk wrote, or Parquet files")
    for split in config.splits.values():
        arrow.find(root, split.source)
    return root


@reported
def sources(config: Config, root: Path) -> list[Path]:
    """The Arrow and Parquet files."""
    used = sorted({split.source for split in config.splits.values()})
    return [path for source in used for path in arrow.find(root, source)]


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[Segment | SetAside]:
    """Yield first the rejected rows, then the utterances of one split; stored audio is written to ``audio_dir``.

    UserError: pyarrow is not installed, a file is damaged, or a column is not clear.
    """
    part = config.splits[split]
    files = arrow.find(root, part.source)
    table = _Table(config, root, files, part.source)
    if not table.stored:
        yield from items_of_split(table.utterances(), part, seed)
        return
    with stored_audio(audio_dir) as store:
        found = list(table.utterances())
        if part.max_seconds_per_language is not None:  # the limit measures files
            found = list(table.write(store, found, store.written))
        chosen = list(items_of_split(found, part, seed))
        chosen = list(table.write(store, chosen, store.final))
        kept = {Path(item.audio).name for item in chosen if isinstance(item, Segment)}
        for path in store.written.iterdir():
            if path.name not in kept:
                path.unlink()
    yield from chosen


class _Table:
    """The rows of the files of one source."""

    def __init__(self, config: Config, root: Path, files: list[Path], source: str):
        self.config, self.root, self.files, self.source = config, root, files, source
        schema = arrow.schema(files[0])
        for path in files[1:]:
            if arrow.schema(path).names != schema.names:
                raise UserError(f"{path}: its columns differ from those of {files[0].name}; correct `source`")
        self.classes = arrow.class_names(schema)
        columns = config.columns
        if columns.audio is None:
            held = [field.name for field in schema if self._has_bytes(field.type)]
            columns = replace(columns, audio=held[0]) if len(held) == 1 else columns
        self.named = records.places(schema.names, columns, files[0], config.language)
        self.audio = schema.field(self.named["audio"])
        self.stored = self._has_bytes(self.audio.type)
        if not self.stored and not self._is_text(self.audio.type):
            raise UserError(
                f"{files[0]}: the column {self.audio.name!r} has the type {self.audio.type}; expected paths, or bytes "
                f"and path, as the feature Audio of `datasets` stores them. Save the data set with that feature"
            )
        if GENDER in schema.names:
            self.named[GENDER] = GENDER

    @staticmethod
    def _has_bytes(kind: "pyarrow.DataType") -> bool:
        types = arrow.pyarrow_module().types
        return types.is_struct(kind) and kind.get_field_index("bytes") >= 0

    @staticmethod
    def _is_text(kind: "pyarrow.DataType") -> bool:
        types = arrow.pyarrow_module().types
        return types.is_string(kind) or types.is_large_string(kind)

    def utterances(self) -> Iterator[Segment | SetAside]:
        """All rows, without the bytes of their audio. ``carried`` is the number of the row if the audio is stored."""
        rows = list(self._rows())
        if self.stored and "id" not in self.named:
            # Many data sets name every file audio.wav; then only the number of the row tells them apart.
            count = Counter(row["audio"] for row, _, _ in rows)
            for row, _, number in rows:
                if not row["audio"] or count[row["audio"]] > 1:
                    row["id"] = f"{self.source}-{number:09d}"
        if self.stored:
            for row, _, number in rows:
                row["carried"] = number
                row["audio"] = row["audio"] or f"{self.source}-{number:09d}"
        yield from records.utterances(rows, self.files[0], self.root, self.config.language, self.config.languages)

    def _rows(self) -> Iterator[tuple[dict[str, Any], str, int]]:
        audio = self.audio.name
        paths = self.stored and self.audio.type.get_field_index("path") >= 0
        wanted = [column for role, column in self.named.items() if role != "audio"]
        # A column of only bytes has no paths to read.
        wanted += [f"{audio}.path"] if paths else [] if self.stored else [audio]
        number = 0
        for path in self.files:
            for line, row in enumerate(
                (row for batch in arrow.batches(path, list(dict.fromkeys(wanted))) for row in batch.to_pylist()),
                start=1,
            ):
                found = {role: self._value(row, column) for role, column in self.named.items() if role != "audio"}
                held = row.get(audio)
                found["audio"] = (held or {}).get("path") if self.stored else held
                yield found, f"{path} row {line}", number
                number += 1

    def _value(self, row: dict[str, Any], column: str) -> Any:
        value, names = row[column], self.classes.get(column)
        if names is not None and isinstance(value, int):
            return names[value] if 0 <= value < len(names) else None
        return value if isinstance(value, str | int | float) else None

    def write(self, store: Store, items: list[Segment | SetAside], folder: Path) -> Iterator[Segment | SetAside]:
        """The items with the paths of their audio in ``folder``; writes the audio that is not written yet.

        A row without bytes keeps its path.
        """
        wanted = {item.carried for item in items if isinstance(item, Segment)}
        written: dict[int, str] = {}
        number = 0
        known = {int(path.stem): path.name for path in store.written.iterdir()}
        for path in self.files if wanted - known.keys() else ():
            for batch in arrow.batches(path, [self.audio.name]):
                held = batch.column(0)
                for place in range(batch.num_rows):
                    content = held[place]["bytes"].as_buffer() if number in wanted and held[place].is_valid else None
                    if content is not None:
                        written[number] = Path(store.put(content, number)).name
                    number += 1
        written |= known
        for item in items:
            if isinstance(item, Segment) and item.carried in written:
                item = replace(item, audio=str(folder / written[item.carried]))
            yield item


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if it is a data set of Hugging Face (``detect.py``)."""
    saved = {p.parent.name: p.parent.name for p in sorted(path.glob("*/state.json"))}
    if saved or (path / "state.json").is_file():
        found = saved or {".": "."}
    else:
        files = [p for folder in (path, path / "data") if folder.is_dir() for p in folder.iterdir()]
        names = sorted({arrow.split_of(p) for p in files if p.suffix in arrow.SUFFIXES and p.is_file()})
        found = {name: name for name in names}
    return {"splits": guess_splits(found)} if found else None
