"""Stage corpus: raw speech in any layout -> Lhotse cuts per split, and a list of what was set aside and why.

In: the corpus's folder, by its key ``path`` or below $SPEECH_DATA; nothing for synthesised speech.
Out, in --out: {split}.jsonl.gz (cuts, one supervision each, sorted by id, 16 kHz), set_aside.tsv (id, split, reason,
detail), audio/ (synthesised speech only), and the manifest. Rebuilt files are equal byte for byte;
``numbers.audio_sha256`` in the manifest says so of the decoded samples.

    SPEECH_DATA=../shared/data python -m lowrank_speech.stages.corpus --out exp/corpus/ocean \\
        --manifest exp/corpus/ocean/corpus.json --jobs 2 --cfg '{"seed": 1, "corpus": {"kind": "kaldi", \\
        "language": "en", "splits": {"train": {"source": "train"}, "test": {"source": "dev"}}}}'
"""

import argparse
import gzip
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_speech.artefact import Manifest, atomic, write_table
from lowrank_speech.corpora import registry
from lowrank_speech.errors import UserError
from lowrank_speech.stages import common

if TYPE_CHECKING:
    from lhotse.cut import Cut

    from lowrank_speech.corpora.common import SetAside
    from lowrank_speech.corpora.validate import Accepted

log = logging.getLogger("lowrank_speech")


@dataclass(frozen=True)
class Config:
    """The stage's slice. ``corpus`` is read by the Config of the module of its kind (corpora/)."""

    seed: int
    corpus: dict[str, Any]


def add(parser: argparse.ArgumentParser) -> None:
    """Declare inputs and outputs."""
    parser.add_argument("--out", required=True, type=Path, help="output: the folder for cuts, list and audio")
    parser.add_argument("--jobs", type=int, default=1, help="threads that decode (processes that synthesise)")


def body(args: argparse.Namespace) -> None:
    """Read, check, write."""
    raw = common.read_cfg(args.cfg)
    config = common.from_json(Config, raw)
    manifest = Manifest("corpus", cfg=raw, seed=config.seed)
    corpus = registry.module(config.corpus.get("kind", ""))
    corpus_config = common.from_json(corpus.Config, config.corpus, "cfg.corpus")
    _check_names(corpus_config.splits)
    data_root = os.environ.get("SPEECH_DATA")
    root = corpus.locate(corpus_config, Path(data_root) if data_root else None)
    items = _read(corpus, corpus_config, root, args.out / "audio", config.seed, args.jobs)
    log.info("corpus: %d candidates from %s", len(items), root or "synthesis")

    from lowrank_speech.corpora.validate import Accepted, Checks, validate

    taken: dict[str, list[Accepted]] = {name: [] for name in corpus_config.splits}
    set_aside: list[tuple[str, SetAside]] = []
    for split, result in validate(items, getattr(corpus_config, "checks", Checks()), args.jobs):
        if isinstance(result, Accepted):
            taken[split].append(result)
        else:
            set_aside.append((split, result))
    outputs = _write(args.out, taken, set_aside)
    numbers = _numbers(taken, set_aside)
    for name, values in numbers["splits"].items():
        log.info("corpus: %s: %s", name, json.dumps(values, ensure_ascii=False))
    if set_aside:
        log.warning("corpus: %d set aside, see %s: %s", len(set_aside), outputs[-1], numbers["set_aside"])
    if numbers["shared_speakers"]:
        log.warning("corpus: speakers in more than one split: %s", numbers["shared_speakers"])
    manifest.write(args.manifest, outputs, numbers)


def _check_names(splits: Iterable[str]) -> None:
    for name in splits:
        if not name.replace("-", "_").isidentifier():
            raise UserError(f"cfg.corpus.splits: {name!r} names a file; use letters, digits, - and _")


def _read(corpus, config, root: Path | None, audio: Path, seed: int, jobs: int) -> list:
    """All items of the corpus; audio that it synthesises is written beside ``audio`` and renamed when complete.

    The list is complete before anything starts a thread: a reader may fork.
    """
    with atomic(audio) as temporary:
        temporary.mkdir()
        items = list(corpus.read(config, root, temporary, seed, jobs))
    if not any(audio.iterdir()):
        audio.rmdir()
        return items

    from lowrank_speech.corpora.validate import relocated

    made = temporary.absolute()

    def move(path: str) -> str:
        written = Path(path).absolute()
        return str(audio / written.relative_to(made)) if written.is_relative_to(made) else path

    return [(split, relocated(item, move) if hasattr(item, "supervisions") else item) for split, item in items]


def _write(out: Path, taken: dict[str, list["Accepted"]], set_aside: list[tuple[str, "SetAside"]]) -> list[Path]:
    """Write the list first: who reads the message of an empty split wants it."""
    from lowrank_speech.corpora.validate import commonest

    listed = out / "set_aside.tsv"
    rows = sorted((item.id, split, item.reason, item.detail) for split, item in set_aside)
    write_table(listed, ("id", "split", "reason", "detail"), rows)
    for name, accepted in taken.items():
        reasons = [item.reason for split, item in set_aside if name in split.split("+")]
        if not accepted:
            why = f"the commonest reason is {commonest(reasons)}; see {listed}" if reasons else "there was no candidate"
            raise UserError(f"split {name}: no utterance is left, {len(reasons)} were set aside: {why}")
    outputs = [out / f"{name}.jsonl.gz" for name in taken]
    for path, accepted in zip(outputs, taken.values(), strict=True):
        accepted.sort(key=lambda result: result.cut.id)
        write_cuts(path, (result.cut for result in accepted))
    return [*outputs, listed]


def write_cuts(path: Path, cuts: Iterable["Cut"]) -> None:
    """Write cuts as gzipped JSON lines (Lhotse's CutSet.from_file reads them), atomically; equal cuts, equal bytes."""
    with (
        atomic(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed,  # no name, no time in the header
    ):
        for cut in cuts:
            packed.write((json.dumps(cut.to_dict(), ensure_ascii=False) + "\n").encode())


def _numbers(taken: dict[str, list["Accepted"]], set_aside: list[tuple[str, "SetAside"]]) -> dict[str, Any]:
    digest = hashlib.sha256()
    splits, places = {}, {}
    for name, accepted in taken.items():
        supervisions = [result.cut.supervisions[0] for result in accepted]
        speakers = {s.speaker for s in supervisions}
        for speaker in speakers:
            places.setdefault(speaker, []).append(name)
        splits[name] = {
            "utterances": len(accepted),
            "seconds": round(sum(result.cut.duration for result in accepted), 3),
            "speakers": len(speakers),
            "languages": dict(sorted(Counter(s.language for s in supervisions).items())),
            "transcribed": sum(s.text is not None for s in supervisions),
            "words": sum(len((s.text or "").split()) for s in supervisions),
        }
        for result in accepted:
            digest.update(f"{result.cut.id} {result.sha256}\n".encode())
    shared = Counter("+".join(names) for names in places.values() if len(names) > 1)
    return {
        "splits": splits,
        "set_aside": dict(sorted(Counter(item.reason for _, item in set_aside).items())),
        "shared_speakers": dict(sorted(shared.items())),
        "audio_sha256": digest.hexdigest(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the stage; the exit code."""
    return common.main("corpus", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
