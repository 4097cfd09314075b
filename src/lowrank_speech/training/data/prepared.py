"""The cuts that a training can use, found in one pass over the manifests. A run that continues reads them from here.

folder/train.jsonl, dev.jsonl    the cuts with their targets; each file has its table (features.kept)
folder/prepared.json             the key of their run, what was set aside, which languages there are; written last
"""

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import write_json
from lowrank_speech.features.kept import KeptCuts, kept_files
from lowrank_speech.lang.select import Languages, SetAside
from lowrank_speech.training.data.splits import SPLITS, Usable

log = logging.getLogger(__name__)

RECORD = "prepared.json"


def prepared(folder: Path, key: str, make: Callable[[], Usable], set_aside: SetAside) -> Usable:
    """Read what ``make`` wrote to ``folder`` in an earlier run with the same ``key``, or call it now.

    ``key`` identifies all that decides which cuts can be used. ``set_aside`` gets the rows of the earlier run.
    """
    record = _read(folder)
    if record is None or record["key"] != key:
        for path in (folder / RECORD, *_files(folder)):
            path.unlink(missing_ok=True)
        usable = make()
        record = {
            "key": key,
            "bytes": _bytes(folder),
            "counts": dict(usable.languages.counts),
            "without": usable.languages.without,
            "labels": usable.labels,
            "untranscribed": usable.untranscribed,
            "set_aside": set_aside.rows,
        }
        write_json(folder / RECORD, record)
        return usable
    set_aside.rows.extend(map(tuple, record["set_aside"]))
    train, dev = (KeptCuts(folder / name) for name in SPLITS)
    log.info("using the cuts that an earlier run prepared")
    languages = Languages(Counter(record["counts"]), record["without"])
    return Usable(train, dev, languages, record["labels"], record["untranscribed"])


def are_prepared(folder: Path, key: str) -> bool:
    """Whether ``prepared`` would read what an earlier run wrote."""
    record = _read(folder)
    return record is not None and record["key"] == key


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        # After a power cut the record may be complete and the files truncated.
        return record if "key" in record and record["bytes"] == _bytes(folder) else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _files(folder: Path) -> list[Path]:
    return [path for name in SPLITS for path in kept_files(folder / name)]


def _bytes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in _files(folder)}
