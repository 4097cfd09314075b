"""Stage features: cuts -> the inputs of a model family, computed once.

inputs   --cuts   cuts of one split (stage corpus)
         --base   model folder of the base (stage base): its frozen front end, its number of mel bands
outputs  --out    the same cuts (.jsonl.gz), with features for all kinds but waveform; the HDF5 file beside it
         --manifest

kinds    waveform  stores nothing; the front end or the filterbank runs each time
         conv      output of the frozen convolutions of wav2vec 2.0 (F, C), lossless unless dtype is float16
         fbank     w2v-BERT's normalised log-mel filterbanks (F, 2 x mel bands), a row every 20 ms
         logmel    Whisper's log-mel (F, mel bands), unpadded

python -m lowrank_speech.stages.features --cfg '{"kind":"conv"}' --cuts train.jsonl.gz --base model
    --out feats/train.jsonl.gz --manifest feats/train.json
"""

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, settings
from lowrank_speech.stages import common

log = logging.getLogger(__name__)


@settings
class Config:
    """The stage's slice."""

    kind: Literal["waveform", "conv", "fbank", "logmel"] = key(REQUIRED, "what to store; waveform: nothing")
    dtype: Literal["float32", "float16"] = key("float32", "number format; float16 halves the size, but rounds")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cuts", required=True, type=Path, help="cuts of one split, .jsonl.gz")
    parser.add_argument("--base", required=True, type=Path, help="model folder of the base")
    parser.add_argument("--out", required=True, type=Path, help="output: cuts with features, .jsonl.gz")


def body(run: common.Run) -> None:
    arguments, config = run.arguments, run.config
    common.existing(arguments.cuts, "--cuts")

    from lowrank_speech.features.store import load_cuts, write_cuts, write_split

    cuts = load_cuts(arguments.cuts, lazy=True)
    outputs, cost = [arguments.out], {"frontend_rtf": 0.0}
    if config.kind == "waveform":
        metrics = {"utterances": write_cuts(arguments.out, cuts), "frames": 0}
    else:
        work = _Work(config, arguments.base)
        count, frames = write_split(work.arrays(cuts), arguments.out, work.shift, config.kind)
        outputs.append(arguments.out.with_name(arguments.out.name.removesuffix(".jsonl.gz") + ".h5"))
        metrics = {"utterances": count, "frames": frames, "frame_shift": work.shift}
        metrics["speech_seconds"] = round(work.speech, 3)
        cost["frontend_rtf"] = round(work.seconds / max(work.speech, 1e-9), 6)
    if not metrics["utterances"]:
        raise UserError(f"{arguments.cuts} has no cuts; give a split with utterances")
    log.info("%(utterances)d utterances, %(frames)d frames", metrics)
    run.finish(outputs, metrics, cost)


class _Work:
    """Computes arrays and measures the time, without reading audio."""

    def __init__(self, config: Config, base: Path):
        import torch

        from lowrank_speech.features.inputs import inputs_of
        from lowrank_speech.models.folder import load_model
        from lowrank_speech.models.registry import FAMILIES

        self.torch, self.dtype = torch, config.dtype
        self.model = load_model(base)
        family = FAMILIES[self.model.family]
        if config.kind != family.features[0]:
            raise UserError(
                f"features: {config.kind} does not fit the {self.model.family} model in {base}; use "
                f"{family.features[0]}"
            )
        self.inputs, self.shift, self.front_end = inputs_of(base), self.model.feature_shift, family.front_end
        self.seconds = self.speech = 0.0

    def arrays(self, cuts) -> Iterator:
        for cut in cuts:
            with self.torch.inference_mode():
                # The time of filterbanks includes reading the samples, which takes less than a percent of it.
                start = time.perf_counter()
                inputs = self.inputs(cut)
                if self.front_end:
                    start = time.perf_counter()
                try:
                    array = self.model.stored_features(inputs)
                except ValueError as error:
                    raise UserError(f"utterance {cut.id}: {error}; raise the corpus's min_seconds") from error
            self.seconds += time.perf_counter() - start
            self.speech += cut.duration
            yield cut, array.numpy().astype(self.dtype)


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("features", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
