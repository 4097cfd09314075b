"""Stage corpus: raw speech in any layout -> the Lhotse cuts of one split, and a list of what was set aside and why.

inputs   the corpus's folder, by its key `path` or below $SPEECH_DATA; nothing for synthesised speech
outputs  --out       folder with
           {split}.jsonl.gz       cuts, one supervision each, sorted by id, 16 kHz
           {split}.index.tsv      id, speaker, language, seconds, sha256 of the samples, source and session (``custom``
                                  fields of the supervision, if there are any); for the stage overlap
           {split}.set_aside.tsv  id, reason, detail
           {split}.audio.json     the audio files that were read; the next run compares them
           audio/{split}/         synthesised speech only
         --manifest  {split}.json

`--cfg` describes the corpus, `--split` names the split to make: one run makes one split. Equal runs write equal bytes;
`audio_sha256` in the manifest covers the decoded samples.

SPEECH_DATA=/data python -m lowrank_speech.stages.corpus --split test --out exp/corpus/ocean
    --manifest exp/corpus/ocean/test.json --jobs 2 --cfg '{"seed": 1, "corpus": {"kind": "kaldi", "language": "en",
    "splits": {"train": {"source": "train"}, "test": {"source": "dev"}}}}'
"""

import argparse
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_speech import settings
from lowrank_speech.artefact import atomic, gzipped, write_json, write_table
from lowrank_speech.corpora import registry, tracking
from lowrank_speech.corpora.common import Track
from lowrank_speech.errors import UserError
from lowrank_speech.lang.tags import found_tags, shown
from lowrank_speech.settings import REQUIRED, Seed, key
from lowrank_speech.stages import common

if TYPE_CHECKING:
    from lowrank_speech.corpora.common import SetAside
    from lowrank_speech.corpora.validate import Accepted

log = logging.getLogger("lowrank_speech")

INDEX = ("id", "speaker", "language", "seconds", "sha256", "source", "session")
SHOWN = 50
"""Number of tags in the manifest, the most frequent first."""


@settings.settings
class Config:
    """The stage's slice."""

    seed: Seed = key(REQUIRED, "seed of all random draws: parts of a source, digit strings, synthesis")
    corpus: dict[str, Any] = key(REQUIRED, "a section of `corpora`: kind and the keys of that kind")


@settings.settings
class Runtime:
    """How the stage runs."""

    track: Track = key("auto", "how changed audio is detected; see docs/your-data.md", runtime=True)


def add(parser: argparse.ArgumentParser) -> None:
    """Declare inputs and outputs."""
    parser.add_argument("--split", required=True, metavar="NAME", help="which split of the corpus to make")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="output: the folder")
    parser.add_argument("--jobs", type=int, default=1, help="decoding threads, or synthesis processes")


def body(run: common.Run) -> None:
    """Read, check, write."""
    args, config = run.arguments, run.config
    chosen = registry.read(config.corpus, "cfg.corpus")
    corpus = registry.module(chosen.kind)
    if args.split not in chosen.splits:
        raise UserError(f"--split: {args.split!r} is not one of the splits {', '.join(chosen.splits)}")
    if not args.split.replace("-", "_").isidentifier():
        raise UserError(f"cfg.corpus.splits: {args.split!r} is not a valid name; use letters, digits, - and _")
    data_root = os.environ.get("SPEECH_DATA")
    root = corpus.locate(chosen, Path(data_root) if data_root else None)
    made = args.out / "audio" / args.split
    items = _read(corpus, chosen, args.split, root, made, config.seed, args.jobs)
    log.info("corpus: %s: %d candidates from %s", args.split, len(items), root or "synthesis")
    # Recorded before the audio is opened, so that a change while the stage reads counts as a change.
    files = record(corpus, chosen, root, items, run.runtime.track)
    tables = tracking.tables(corpus.sources(chosen, root), root)

    from lowrank_speech.corpora.common import Checks
    from lowrank_speech.corpora.validate import validate

    # In the order of the output, so that cuts can be written as they come.
    items.sort(key=lambda item: item.id)
    results = validate(items, getattr(chosen, "checks", Checks()), args.jobs)
    outputs, numbers = write(args.out, args.split, results)
    log.info("corpus: %s: %s", args.split, json.dumps(numbers, ensure_ascii=False))
    if numbers["set_aside"]:
        log.warning("corpus: %s: set aside: %s; see %s", args.split, numbers["set_aside"], outputs[-1])
    if numbers["tags"]:
        log.warning(
            "corpus: %s: the transcripts contain tags: %s; they count as words unless the token set maps or removes "
            "them (`normalise.tags`)",
            args.split,
            shown(numbers["tags"]),
        )
    write_json(args.out / f"{args.split}.audio.json", files)
    run.finish(outputs, numbers, sources=tables)


def record(corpus: Any, config: Any, root: Path | None, items: "Iterable[Any]", track: str) -> dict[str, Any]:
    """The audio files that are read from the corpus's folder, without those that the stage makes itself."""
    from lowrank_speech.corpora.validate import paths

    if root is None:
        return tracking.record(".", (), "none")
    listed = corpus.listed(config, root) if hasattr(corpus, "listed") else ()
    return tracking.record(root, (path for item in items for path in paths(item)), track, listed)


def _read(corpus: Any, config: Any, split: str, root: Path | None, audio: Path, seed: int, jobs: int) -> list:
    """All items of the split. Writes synthesised audio beside ``audio`` and renames it when it is complete.

    The list is complete before any thread starts, because a reader may fork.
    """
    from lowrank_speech.corpora.validate import mark_duplicates, relocated

    if root is not None:
        return mark_duplicates(corpus.read(config, split, root, audio, seed, jobs))
    with atomic(audio) as temporary:
        temporary.mkdir()
        items = mark_duplicates(corpus.read(config, split, root, temporary, seed, jobs))
    made = temporary.absolute()

    def move(path: str) -> str:
        written = Path(path).absolute()
        return str(audio / written.relative_to(made)) if written.is_relative_to(made) else path

    return [relocated(item, move) if hasattr(item, "supervisions") else item for item in items]


def write(out: Path, split: str, results: "Iterable[Accepted | SetAside]") -> tuple[list[Path], dict[str, Any]]:
    """Write cuts, index and the list of what was set aside; return the files and the metrics.

    UserError: no cut is left; the list of what was set aside is still written.
    """
    from lowrank_speech.corpora.common import SetAside
    from lowrank_speech.corpora.validate import most_common

    cuts, index, listed = (out / f"{split}.{name}" for name in ("jsonl.gz", "index.tsv", "set_aside.tsv"))
    summary, set_aside = Summary(), []

    def accepted() -> "Iterator[Accepted]":
        for result in results:
            if isinstance(result, SetAside):
                set_aside.append(result)
            else:
                summary.add(result)
                yield result
        rows = sorted((item.id, item.reason, item.detail) for item in set_aside)
        write_table(listed, ("id", "reason", "detail"), rows)
        if not summary.utterances:
            reasons = [item.reason for item in set_aside]
            why = f"mostly {most_common(reasons)}; see {listed}" if reasons else "the corpus has no candidates"
            raise UserError(f"split {split}: no utterance is left, {len(reasons)} were set aside: {why}")

    write_cuts(cuts, index, accepted())
    reasons = Counter(item.reason for item in set_aside)
    return [cuts, index, listed], summary.numbers() | {"set_aside": dict(sorted(reasons.items()))}


def write_cuts(path: Path, index: Path, results: "Iterable[Accepted]") -> None:
    """Write cuts as gzipped JSON lines (Lhotse's CutSet.from_file reads them) and their index, both atomically.

    Equal cuts give equal bytes: the gzip header has neither name nor time.
    """
    with (
        gzipped(path) as packed,
        atomic(index) as table,
        table.open("w", encoding="utf-8", newline="\n") as rows,
    ):
        rows.write("\t".join(INDEX) + "\n")
        for result in results:
            cut, supervision = result.cut, result.cut.supervisions[0]
            packed.write((json.dumps(cut.to_dict(), ensure_ascii=False) + "\n").encode())
            fields = (cut.id, supervision.speaker, supervision.language, str(round(cut.duration, 6)), result.sha256)
            fields += tuple((supervision.custom or {}).get(name) for name in INDEX[len(fields) :])
            rows.write("\t".join(" ".join(str(field or "").split()) for field in fields) + "\n")


class Summary:
    """Counts over the cuts of a split."""

    def __init__(self) -> None:
        self.utterances, self.transcribed, self.words = 0, 0, 0
        self._seconds: list[float] = []
        self._speakers: set[str] = set()
        self._languages: Counter[str] = Counter()
        self._tags: Counter[str] = Counter()
        self._digest = hashlib.sha256()

    def add(self, result: "Accepted") -> None:
        """Count one cut; cuts come sorted by id."""
        supervision = result.cut.supervisions[0]
        self.utterances += 1
        self._seconds.append(result.cut.duration)
        self._speakers.add(supervision.speaker)
        self._languages[supervision.language] += 1
        self.transcribed += supervision.text is not None
        self.words += len((supervision.text or "").split())
        self._tags.update(found_tags(supervision.text or ""))
        self._digest.update(f"{result.cut.id} {result.sha256}\n".encode())

    def numbers(self) -> dict[str, Any]:
        """The metrics for the manifest."""
        return {
            "utterances": self.utterances,
            "seconds": round(sum(self._seconds), 3),
            "speakers": len(self._speakers),
            "languages": dict(sorted(self._languages.items())),
            "transcribed": self.transcribed,
            "words": self.words,
            "tags": dict(sorted(self._tags.items(), key=lambda pair: (-pair[1], pair[0]))[:SHOWN]),
            "audio_sha256": self._digest.hexdigest(),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the stage; the exit code."""
    return common.main("corpus", __doc__, Config, add, body, argv, Runtime)


if __name__ == "__main__":
    raise SystemExit(main())
