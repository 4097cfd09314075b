"""Stage emissions: a CTC system and test cuts -> log probabilities, computed once for all decoders that read them.

inputs   --model  the system's model folder (stage train)
         --cuts   test cuts with features (stage features)
outputs  --out    folder with
           emissions.h5    an array (frames, symbols) for each utterance, under its id: natural-log probabilities
           frames.tsv      id, frames, seconds of speech
           set_aside.tsv   utterances that the network cannot process, with the reason
         --manifest  ``emissions.json`` in that folder: utterances, frames, symbols and their meaning

cfg      emissions  {dtype, batch_seconds}

python -m lowrank_speech.stages.emissions --cfg '{}' --model system/model --cuts test.jsonl.gz
    --out emissions --manifest emissions/emissions.json
"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.decoding.base import Decoding, Runtime
from lowrank_speech.errors import UserError
from lowrank_speech.settings import key, settings
from lowrank_speech.stages import common

log = logging.getLogger(__name__)


@settings
class Settings(Decoding):
    """How emissions are computed and stored."""

    dtype: Literal["float32", "float16"] = key("float32", "number format; float16 halves the size, but rounds")


@settings
class Config:
    """The stage's slice."""

    emissions: Settings = key(None, "how emissions are computed and stored", default_factory=Settings)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help="model folder of the system")
    parser.add_argument("--cuts", required=True, type=Path, help="test cuts with features, .jsonl.gz")
    parser.add_argument("--out", required=True, type=Path, help="output: folder of the emissions")


def body(run: common.Run) -> None:
    arguments, config = run.arguments, run.config
    common.existing(arguments.model, "--model")
    common.existing(arguments.cuts, "--cuts")

    from lowrank_speech.decoding.emissions import ARRAYS, ASIDE, FRAMES, write
    from lowrank_speech.decoding.sources import Clock, Network, spoken_seconds
    from lowrank_speech.features.store import load_cuts
    from lowrank_speech.lang.select import SetAside, one_supervision, require

    source, set_aside, out = Network(arguments.model, run.runtime.device), SetAside(), arguments.out
    if source.task != "ctc":
        raise UserError(
            f"emissions: {arguments.model} is a model for {source.task}; only CTC models have emissions; decode it "
            "directly"
        )
    run.device = str(source.device)
    cuts = one_supervision(load_cuts(arguments.cuts), set_aside)
    cuts = sorted(source.usable(cuts, arguments.cuts, set_aside), key=lambda cut: cut.id)
    require(cuts, f"emissions: {arguments.cuts}", set_aside)
    clock = Clock(source.device)

    def compute(batch: dict[str, Any]) -> list[Any]:
        logits, frames = source.model.ctc_logits(batch["features"], batch["lengths"])
        log_probs = logits.float().log_softmax(-1).cpu().numpy()
        return [row[:n] for row, n in zip(log_probs, frames.tolist(), strict=True)]

    def rows() -> Iterator[tuple[str, float, Any]]:
        for batch, arrays in clock.over(source.batches(cuts, config.emissions.batch_seconds), compute):
            for cut, array in zip(batch["cuts"], arrays, strict=True):
                yield cut.id, spoken_seconds(cut), array

    metrics = write(out, rows(), config.emissions.dtype)
    run.write_set_aside(out / ASIDE, set_aside.rows)
    metrics |= {
        "task": source.task,
        "lang_sha256": source.lang_sha256,
        "speech_seconds": round(clock.speech, 3),
        "set_aside": set_aside.counts(),
    }
    cost = {"seconds_network": round(clock.seconds, 4), "rtf": round(clock.seconds / clock.speech, 6)}
    log.info("%d utterances, %d frames in %.2f s", metrics["utterances"], metrics["frames"], clock.seconds)
    outputs = [out / name for name in (ARRAYS, FRAMES, ASIDE)]
    run.finish(outputs, metrics, cost, peak_bytes=source.peak())


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("emissions", __doc__, Config, add, body, argv, Runtime)


if __name__ == "__main__":
    raise SystemExit(main())
