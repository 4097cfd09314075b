"""Stage backend: dev scores (or embeddings) of one or several systems -> a back end that calibrates or fuses them.

inputs   --dev       for each system the folder of the stage decode on dev: scores.tsv, labels.tsv, and for ``on:
                     embeddings`` embeddings.safetensors (decoder of kind embeddings)
outputs  --out       folder with
           dev.tsv                the segments that it was trained on: id, language, speaker (empty if not known)
           backend.safetensors    the weights, if they are many
         --manifest  backend.json: metrics.backend is the trained back end (``lowrank_speech.backend.model`` reads it);
                     Cllr and accuracy on dev, before and after

cfg      backend     kind (temperature, affine, gaussian, fusion) and its keys
         systems     a name for each folder of --dev, in their order
         least       segments that each language of dev must have

No test segment is read here; the stage apply uses the result. All languages have the same weight, however many segments
they have.

python -m lowrank_speech.stages.backend --cfg '{"backend":{"kind":"affine"},"systems":["whisper/lid/ecapa"]}'
    --dev exp/x/decode/whisper/lid/ecapa/scores/dev --out backend --manifest backend/backend.json
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lowrank_speech.artefact import atomic, write_table
from lowrank_speech.backend import registry
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, Count, key, settings
from lowrank_speech.stages import common

log = logging.getLogger(__name__)


@settings
class Config:
    """The stage's slice."""

    backend: dict[str, Any] = key(REQUIRED, "kind of the back end, and its keys")
    systems: Annotated[tuple[str, ...], Field(min_length=1)] = key(
        REQUIRED, "names of the systems whose scores it reads, in the order of --dev"
    )
    least: Count = key(5, "segments that each language of dev must have")

    def __post_init__(self) -> None:
        try:
            registry.settings_of(self.backend)
        except UserError as error:
            raise ValueError(str(error)) from error


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dev", required=True, nargs="+", type=Path, help="folders of the stage decode on dev")
    parser.add_argument("--out", required=True, type=Path, help="output: folder of the back end")


def body(run: common.Run) -> None:
    from lowrank_speech.backend import training
    from lowrank_speech.backend.data import read
    from lowrank_speech.backend.model import TENSORS

    arguments, config = run.arguments, run.config
    own = registry.settings_of(config.backend)
    if len(arguments.dev) != len(config.systems):
        raise UserError(f"--dev: {len(arguments.dev)} folders for {len(config.systems)} systems; give one for each")
    for folder in arguments.dev:
        common.existing(folder, "--dev")
    try:
        data = read(arguments.dev, getattr(own, "on", "scores"))
        backend, facts = training.train(own, data, config.systems, config.least)
    except ValueError as error:
        raise UserError(str(error)) from error
    if facts["warning"]:
        log.warning("backend: %s", facts["warning"])
    before, after = (facts[name]["cllr"] for name in ("before", "after"))
    said = "" if before is None else f"Cllr {before:.4f} before, "
    log.info("%s on %d dev segments: %s%.4f after", own.kind, len(data.ids), said, after)
    listed = arguments.out / "dev.tsv"
    speakers = data.speakers or {}
    rows = [(name, data.labels[name], speakers.get(name, "")) for name in data.ids]
    write_table(listed, ("id", "language", "speaker"), rows)
    outputs = [listed]
    if backend.large:
        from safetensors.numpy import save_file

        with atomic(arguments.out / TENSORS) as temporary:
            save_file(backend.tensors(), temporary)
        outputs.append(arguments.out / TENSORS)
    else:
        (arguments.out / TENSORS).unlink(missing_ok=True)
    run.finish(outputs, {"backend": backend.as_json(), **facts})


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("backend", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
