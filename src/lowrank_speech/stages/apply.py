"""Stage apply: a back end and the test scores of its systems -> calibrated or fused scores, as the stage decode writes.

inputs   --backend   folder of the stage backend: backend.json, dev.tsv
         --test      for each of its systems the folder of the stage decode on one test set, in the order of its inputs
outputs  --out       folder with
           scores.tsv            calibrated log-likelihoods; exp of a row sums to 1
           labels.tsv, seconds.tsv, sources.tsv, speakers.tsv   those of the first system
         --manifest  number of segments, and the systems

No speaker of dev may be in the test set. If the speakers of either are not known, a warning says so.

python -m lowrank_speech.stages.apply --cfg '{}' --backend backend --test exp/x/decode/whisper/lid/ecapa/scores/test
    --out calibrated --manifest calibrated/apply.json
"""

import argparse
import csv
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_speech.artefact import atomic, write_table
from lowrank_speech.errors import UserError
from lowrank_speech.settings import settings
from lowrank_speech.stages import common

if TYPE_CHECKING:
    from lowrank_speech.backend.data import Segments

log = logging.getLogger(__name__)

COPIED = ("labels.tsv", "seconds.tsv", "sources.tsv", "speakers.tsv")


@settings
class Config:
    """The stage's slice. It has no settings: the back end is trained."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", required=True, type=Path, help="folder of the stage backend")
    parser.add_argument("--test", required=True, nargs="+", type=Path, help="folders of the stage decode on a test set")
    parser.add_argument("--out", required=True, type=Path, help="output: folder of calibrated scores")


def body(run: common.Run) -> None:
    from lowrank_speech.backend.data import read
    from lowrank_speech.backend.model import Backend

    arguments = run.arguments
    for folder in arguments.test:
        common.existing(folder, "--test")
    try:
        backend = Backend.load(common.existing(arguments.backend, "--backend") / "backend.json")
        if len(arguments.test) != len(backend.inputs):
            names = ", ".join(one.system for one in backend.inputs)
            raise ValueError(
                f"--test: {len(arguments.test)} folders, but {arguments.backend} reads {len(backend.inputs)} systems: "
                f"{names}; give a folder for each"
            )
        data = read(arguments.test, backend.on, backend.languages)
        for name in data.ids:
            if data.labels[name] not in backend.languages:
                raise ValueError(
                    f"{arguments.test[0] / 'labels.tsv'}: segment {name!r} is {data.labels[name]!r}, of which the back "
                    f"end had no dev segment; expected one of: {', '.join(backend.languages)}"
                )
        check_apart(arguments.backend / "dev.tsv", data)
        calibrated = backend.apply(*data.inputs)
    except ValueError as error:
        raise UserError(str(error)) from error
    out = arguments.out
    rows = [(name, *(f"{value:.6f}" for value in row)) for name, row in zip(data.ids, calibrated.tolist(), strict=True)]
    write_table(out / "scores.tsv", ("id", *backend.languages), rows)
    outputs = [out / "scores.tsv"]
    for name in COPIED:
        if (arguments.test[0] / name).is_file():
            with atomic(out / name) as temporary:
                shutil.copyfile(arguments.test[0] / name, temporary)
            outputs.append(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    run.finish(outputs, {"utterances": len(data.ids), "systems": [one.system for one in backend.inputs]})


def check_apart(dev: Path, test: "Segments") -> None:
    """ValueError: a speaker (or a segment, if speakers are not known) is in the table ``dev`` and in ``test``."""
    with common.existing(dev, "--backend").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    heard: dict[str, str] = {}
    for row in rows:
        heard.setdefault(row["speaker"], row["id"])
    if not all(row["speaker"] for row in rows) or test.speakers is None:
        seen = {row["id"] for row in rows}
        if (twice := next((name for name in test.ids if name in seen), None)) is not None:
            raise ValueError(
                f"segment {twice!r} is in dev ({dev}) and in the test set ({test.folders[0]}); a back end must be "
                f"trained on other segments"
            )
        log.warning("apply: the speakers of dev or of the test set are not known; make sure that they differ")
        return
    for name in test.ids:
        if (speaker := test.speakers.get(name)) in heard:
            raise ValueError(
                f"speaker {speaker!r} is in dev (segment {heard[speaker]!r}, {dev}) and in the test set (segment "
                f"{name!r}, {test.folders[0]}); a back end must be trained on other speakers: choose other splits"
            )


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("apply", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
