"""JSON lines with the keys of NeMo: a manifest per source, one object per line.

In: ``{"audio_filepath": "wav/a.wav", "duration": 3.2, "text": "good morning", "offset": 1.5, "lang": "en", "speaker":
"anna"}``; only the first key is required. Relative paths start at the manifest's folder. With ``offset``, the
utterance is that part of the recording; without it, ``duration`` is compared with the audio. Other names of keys:
``columns``. Out: an utterance per line. Manifests of tar files (keys ``shard_id``) are refused.

    corpora:
      mine: {kind: nemo, path: /data/manifests, language: en,
             splits: {train: {source: train.json}, dev: {source: dev.json}, test: {source: test.json}}}
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lowrank_speech.corpora import records
from lowrank_speech.corpora.common import SetAside, Utterance, read_lines
from lowrank_speech.corpora.layouts import Layout, Segment, guess_splits, located, reported, with_details
from lowrank_speech.corpora.parts import items_of_split
from lowrank_speech.corpora.records import Columns
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, settings

if TYPE_CHECKING:
    from lhotse.cut import Cut

OTHERS = {"start": ("offset",), "source": ("source",), "gender": ("gender",)}


@settings
class Config(Layout):
    """A corpus of JSON lines."""

    kind: Literal["nemo"] = key(REQUIRED, "JSON lines with the keys of NeMo: audio_filepath, duration, text, offset")
    language: str | None = key(None, "language code of lines without a language")
    languages: tuple[str, ...] = key((), "languages to use, others are set aside; empty: all languages")
    columns: Columns = key(None, "names of the keys", default_factory=Columns)


@reported
def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder of the manifests. UserError: it or a manifest does not exist."""
    names = sorted({split.source for split in config.splits.values()})
    return located(config, data_root, f"manifests in JSON lines ({', '.join(names)})", names)


@reported
def sources(config: Config, root: Path) -> list[Path]:
    """The manifests."""
    return [root / source for source in sorted({split.source for split in config.splits.values()})]


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> "Iterator[Cut | Utterance | SetAside]":
    """Yield first the rejected lines, then the utterances of one split, in the order of its manifest."""
    part = config.splits[split]
    yield from with_details(items_of_split(_utterances(config, root / part.source), part, seed), config.checks, jobs)


def _utterances(config: Config, path: Path) -> Iterator[Segment | SetAside]:
    parsed: list[tuple[int, dict[str, Any]]] = []
    for line, content in read_lines(path):
        where = f"{path} line {line}"
        try:
            found = json.loads(content)
        except ValueError as error:
            yield SetAside(f"{path.name}:{line}", "malformed row", f"{where}: not JSON: {error}")
            continue
        if not isinstance(found, dict):
            yield SetAside(
                f"{path.name}:{line}", "malformed row", f"{where}: expected an object, got {content[:100]!r}"
            )
        elif "shard_id" in found:
            raise UserError(
                f"{where}: a manifest of tar files (`shard_id`) is not supported; extract the audio, or convert it "
                f"with Lhotse to Shar and use the kind lhotse"
            )
        else:
            parsed.append((line, found))
    if not parsed:
        return
    keys = list(dict.fromkeys(name for _, found in parsed for name in found))
    named = records.places(keys, config.columns, path, config.language)
    named |= {role: name for role, names in OTHERS.items() for name in names if name in keys}
    rows = (
        ({role: found.get(name) for role, name in named.items()}, f"{path} line {line}", line) for line, found in parsed
    )
    yield from records.utterances(_checked(rows), path, path.parent, config.language, config.languages)


def _checked(rows: Iterator[tuple[dict[str, Any], str, int]]) -> Iterator[tuple[dict[str, Any], str, int]]:
    """Values that are neither text nor a number become empty or, for times, a text that is refused."""
    for row, where, line in rows:
        for role, value in row.items():
            if isinstance(value, dict | list | bool):
                row[role] = json.dumps(value) if role in ("start", "seconds") else None
        yield row, where, line


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if it contains manifests with the key ``audio_filepath`` (``detect.py``)."""
    found, language = {}, True
    for manifest in sorted(p for p in path.iterdir() if p.suffix.lower() in (".json", ".jsonl") and p.is_file()):
        with manifest.open(encoding="utf-8-sig", errors="replace") as file:
            line = file.readline(100_000)
        try:
            first = json.loads(line)
        except ValueError:
            continue
        if isinstance(first, dict) and "audio_filepath" in first:
            found[manifest.stem] = manifest.name
            language = language and not set(records.NAMES["language"]).isdisjoint(first)
    return ({"splits": guess_splits(found)} | ({} if language else {"language": None})) if found else None
