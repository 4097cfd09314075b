"""Read tables of Hugging Face `datasets` from disk with pyarrow: Arrow files of ``save_to_disk`` or the cache,
Parquet files.

Only the columns that are asked for are read, batch by batch. pyarrow is one package; `datasets` would bring several
more, and decodes audio, which this project does itself."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_speech.errors import UserError

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".parquet", ".arrow")
SHARD = re.compile(r"(?P<name>.*?)-(?P<number>\d{5})-of-(?P<count>\d{5})")
BATCH = 256


def pyarrow_module() -> Any:
    """The package pyarrow. UserError: it is not installed."""
    try:
        import pyarrow.compute
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "corpus of kind datasets: Arrow and Parquet files need the package pyarrow, which is not installed; pip "
            "install pyarrow (or lowrank-speech[arrow])"
        ) from error
    return pyarrow


def find(root: Path, source: str) -> list[Path]:
    """The files of a source: a folder of ``save_to_disk``, a file, or a split that the names of files contain.

    UserError: there is none, or one of several shards is missing.
    """
    path = root / source
    if path.is_file() and path.suffix in SUFFIXES:
        return [path]
    if path.is_dir():
        found = _in_folder(path)
    else:
        listed = sorted(p for folder in (root, root / "data") if folder.is_dir() for p in folder.iterdir())
        listed = [p for p in listed if p.suffix in SUFFIXES and p.is_file()]
        found = [p for p in listed if split_of(p) == source] or [
            p for p in listed if split_of(p).endswith(f"-{source}")
        ]
        if not found:
            names = sorted({split_of(p) for p in listed} | {p.name for p in root.iterdir() if p.is_dir()})
            raise UserError(
                f"{path}: `source: {source}` is not a folder, an Arrow or Parquet file, or a split in {root} or "
                f"{root / 'data'}; there are {', '.join(names) or 'none'}"
            )
    _check_shards(found)
    return found


def _in_folder(path: Path) -> list[Path]:
    state = path / "state.json"
    if state.is_file():
        try:
            names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8-sig"))["_data_files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{state}: not the state of a data set that `save_to_disk` wrote: {error}") from error
        lost = [name for name in names if not (path / name).is_file()]
        if lost:
            raise UserError(f"{path}: {lost[0]}, which state.json names, does not exist; copy the folder again")
        return [path / name for name in names]
    found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if not found:
        folders = ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir())) or "none"
        raise UserError(f"{path}: there is no Arrow or Parquet file; correct `source` (folders in it: {folders})")
    return found


def split_of(path: Path) -> str:
    """train for train-00000-of-00002.parquet."""
    match = SHARD.fullmatch(path.stem)
    return match["name"] if match else path.stem


def _check_shards(files: list[Path]) -> None:
    for path in files:
        match = SHARD.fullmatch(path.stem)
        for number in range(int(match["count"])) if match else ():
            other = path.with_name(f"{match['name']}-{number:05d}-of-{match['count']}{path.suffix}")
            if not other.is_file():
                raise UserError(f"{other} does not exist, but {path.name} does; copy the missing part")


def schema(path: Path) -> "pyarrow.Schema":
    """The columns of a file. UserError: it cannot be read."""
    arrow = pyarrow_module()
    try:
        if path.suffix == ".parquet":
            return arrow.parquet.read_schema(path)
        with arrow.memory_map(str(path)) as file:
            return _opened(arrow, file).schema
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _opened(arrow: Any, file: Any) -> Any:
    """A reader of the stream form, which `datasets` writes, or of the file form of Arrow."""
    try:
        return arrow.ipc.open_stream(file)
    except arrow.ArrowInvalid:
        file.seek(0)
        return arrow.ipc.open_file(file)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: not a readable Arrow or Parquet file: {' '.join(str(error).split())[:300]}; copy it again"
    )


def batches(path: Path, columns: list[str]) -> "Iterator[pyarrow.RecordBatch]":
    """The rows of a file in batches, with the ``columns`` only (``audio.path``: a part of a structure).

    UserError: the file is damaged.
    """
    arrow = pyarrow_module()
    try:
        if path.suffix == ".parquet":
            yield from arrow.parquet.ParquetFile(path).iter_batches(BATCH, columns=columns)
            return
        with arrow.memory_map(str(path)) as file:
            reader = _opened(arrow, file)
            count = getattr(reader, "num_record_batches", None)
            for batch in reader if count is None else (reader.get_batch(i) for i in range(count)):
                yield from _chosen(arrow, batch, columns)
    except (arrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _chosen(arrow: Any, batch: "pyarrow.RecordBatch", columns: list[str]) -> "Iterator[pyarrow.RecordBatch]":
    """Columns of a memory-mapped batch, in pieces, without touching the bytes of others."""
    arrays, names = [], []
    for column in columns:
        name, _, part = column.partition(".")
        array = batch.column(name)
        if part:
            inner = arrow.compute.struct_field(array, part)
            array = arrow.StructArray.from_arrays([inner], names=[part])
        arrays.append(array)
        names.append(name)
    made = arrow.RecordBatch.from_arrays(arrays, names=names)
    for start in range(0, made.num_rows, BATCH):
        yield made.slice(start, BATCH)


def class_names(found: "pyarrow.Schema") -> dict[str, list[str]]:
    """Column -> names of its classes, for columns that `datasets` stores as numbers (ClassLabel)."""
    try:
        features = json.loads((found.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
