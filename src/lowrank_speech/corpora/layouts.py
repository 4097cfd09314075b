"""Shared by the readers of published layouts: settings, folders, ids, and utterances with a channel or a source.

A layout's reader yields the items of a whole source; ``parts.items_of_split`` takes the part of a split from them::

    @settings
    class Config(Layout):
        kind: Literal["mls"] = key(REQUIRED, "Multilingual LibriSpeech")


    def read(config, split, root, audio_dir, seed, jobs=1):
        part = config.splits[split]
        yield from items_of_split(_utterances(root, part.source), part, seed)

What only layouts need is here and not in ``common.py``, whose changes rerun the experiments of every kind.
"""

import functools
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lowrank_speech.corpora.common import TRACK, Checks, SetAside, Track, Utterance, find_folder
from lowrank_speech.corpora.parts import SplitConfig, check_splits
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, settings

if TYPE_CHECKING:
    from lhotse.cut import Cut

NAMES = {
    "train": ("train", "training", "validated"),
    "dev": ("dev", "valid", "validation", "val", "devel", "development"),
    "test": ("test", "eval", "evaluation", "testing"),
}
"""Usual names of splits."""
LANGUAGE = "language code of all utterances, for example en"


@settings
class Split(SplitConfig):
    """One split: a part of a source of the corpus."""

    source: Annotated[str, Field(min_length=1)] = key(
        REQUIRED, "what to read, relative to the corpus's folder (docs/your-data.md has an example for each kind)"
    )


@settings
class Layout:
    """Keys that all published layouts have."""

    kind: str = key(REQUIRED, "the layout")
    splits: dict[str, Split] = key(REQUIRED, "name -> which part of the corpus")
    path: str | None = key(None, "folder of the corpus; null: `folder` below $SPEECH_DATA")
    folder: str | None = key(None, "folder below $SPEECH_DATA, used if `path` is null; null: the name of the kind")
    checks: Checks = key(None, "which audio is accepted", default_factory=Checks)
    track: Track = key("auto", TRACK, runtime=True)

    def __post_init__(self) -> None:
        check_splits(self.splits)


@dataclass(frozen=True)
class Segment(Utterance):
    """An utterance with more than its row: ``with_details`` makes the cut."""

    channel: int | None = None
    """Channel of a recording with several channels, from 0; None: the one of ``checks.channel``."""
    custom: Mapping[str, Any] | None = None
    """``custom`` fields of the supervision, such as ``source``."""
    carried: Any = field(default=None, compare=False)
    """What the reader needs to make the item once the split is chosen (a row, a cut)."""


def reported(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a kind's ``locate`` and ``sources``, which run while Snakemake plans: errors become UserErrors."""

    @functools.wraps(function)
    def checked(config: Layout, folder: Path | None) -> Any:
        try:
            return function(config, folder)
        except OSError as error:
            raise unreadable(config.kind, Path(error.filename or config.path or "."), error) from error

    return checked


def located(config: Layout, data_root: Path | None, holds: str, files: Iterable[str] = ()) -> Path:
    """Return the corpus's folder, as ``find_folder`` does. UserError: it does not exist. OSError: it cannot be read."""
    root = find_folder(config.kind, config.path, data_root, config.folder or config.kind, holds, files)
    os.scandir(root).close()
    return root


def unreadable(kind: str, path: Path, error: OSError) -> UserError:
    """The error for a file or folder that cannot be read."""
    return UserError(
        f"corpus of kind {kind}: {path} cannot be read: {error.strerror or error}; change its permissions, or the "
        f"corpus's key `path`"
    )


def inside(config: Layout, root: Path, source: str) -> Path:
    """The folder ``source`` below ``root``. UserError: it does not exist; the message lists the folders there are."""
    folder = root / source
    if folder.is_dir():
        return folder
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    raise UserError(
        f"corpus of kind {config.kind}: the folder {folder} does not exist (`source: {source}`); {root} has "
        f"{_listed(found) or 'no folder'}"
    )


def located_with_sources(config: Layout, data_root: Path | None, holds: str) -> Path:
    """``located``, for kinds whose sources are folders. UserError: the folder of a split does not exist."""
    root = located(config, data_root, holds)
    for split in config.splits.values():
        inside(config, root, split.source)
    return root


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def name_id(name: str) -> str:
    """An id from a name or relative path: white space, control characters and % are percent-encoded.

    So different names give different ids, and every id is one word.
    """
    return "".join(
        urllib.parse.quote(c) if c == "%" or c.isspace() or unicodedata.category(c) == "Cc" else c for c in name
    )


def segment_id(recording: str, start: float, end: float, *parts: str | None) -> str:
    """An id of a segment, sorted by time within a recording: recording-part-0001230-0002345 (milliseconds)."""
    names = [recording, *(part for part in parts if part), f"{round(start * 1000):08d}", f"{round(end * 1000):08d}"]
    return name_id("-".join(names))


def one_line(text: str | None) -> str | None:
    """A transcript without line breaks and tabs, stripped; None if nothing is left."""
    return re.sub(r"\s*[\t\r\n\v\f\x85\u2028\u2029]\s*", " ", text or "").strip() or None


def language_folders(root: Path, languages: Sequence[str], file: str) -> list[tuple[str, Path]]:
    """(name, folder) of each language: ``root`` itself if it has ``file``, else its folders with ``file``, sorted.

    ``languages``: names of the folders to use; empty: all. UserError: one of them does not exist.
    """
    if (root / file).exists():
        if languages and root.name not in languages:
            raise UserError(
                f"{root}: this is the folder of one language, {root.name}, but `languages` is {list(languages)}; set "
                f"`path` to the folder above it, or remove `languages`"
            )
        return [(root.name, root)]
    found = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and (path / file).exists()}
    for name in languages:
        if name not in found:
            raise UserError(
                f"{root}: the language {name!r} of `languages` has no {root / name / file}; there are "
                f"{_listed(list(found)) or 'none'}"
            )
    if not found:
        raise UserError(
            f"{root}: neither {root / file} nor {root}/<language>/{file} exists; correct `source` or `path`"
        )
    return [(name, path) for name, path in found.items() if not languages or name in languages]


def with_details(
    items: "Iterable[Utterance | SetAside]", checks: Checks, jobs: int
) -> "Iterator[Cut | Utterance | SetAside]":
    """Make the cuts of segments that have a channel or ``custom`` fields; leave other items as they are.

    The files are opened here in ``jobs`` threads; validate.py does not decode them again.
    """
    from lowrank_speech.corpora.audio import AudioError, open_once
    from lowrank_speech.corpora.validate import make_cut

    items = list(items)
    files = sorted({item.audio for item in items if _has_details(item)})
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        headers = dict(zip(files, pool.map(open_once, files), strict=True))
    for item in items:
        if not _has_details(item):
            yield item
            continue
        header = headers[item.audio]
        if isinstance(header, AudioError) or (header.channels == 1 and not item.custom):
            yield item  # validate.py says what is wrong, or needs no details
            continue
        try:
            own = checks if item.channel is None else replace(checks, channel=item.channel)
            cut = make_cut(item, header, own)
        except AudioError as fault:
            yield SetAside(item.id, fault.reason, fault.detail)
            continue
        cut.supervisions[0].custom = dict(item.custom) if item.custom else None
        yield cut


def _has_details(item: Any) -> bool:
    return isinstance(item, Segment) and (item.channel is not None or bool(item.custom))


def guess_splits(sources: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Splits train, dev and test of a config, from the names of sources (name -> `source`).

    The only held-out source becomes test, and a missing dev or test a part of train. If no source is called train,
    all of one source is divided.
    """
    found = {}
    for split, names in NAMES.items():
        exact = [source for name in names for other, source in sources.items() if other.lower() == name]
        begun = [source for other, source in sources.items() if re.match(rf"{split}[-_. ]", other.lower())]
        if exact or begun:
            found[split] = {"source": (exact or begun)[0]}
    if "train" not in found and sources:
        rest = [source for source in sources.values() if {"source": source} not in found.values()]
        if rest:
            found["train"] = {"source": rest[0]}
    if "train" not in found:
        return found
    if "test" not in found and "dev" in found:
        found["test"] = found.pop("dev")
    missing = [split for split in ("dev", "test") if split not in found]
    bounds = {0: [], 1: [0.9], 2: [0.8, 0.9]}[len(missing)]
    edges = [0.0, *bounds, 1.0]
    for split, low, high in zip(["train", *missing], edges[:-1], edges[1:], strict=True):
        found[split] = {"source": found["train"]["source"], **({"part": [low, high]} if missing else {})}
    return {split: found[split] for split in NAMES}
