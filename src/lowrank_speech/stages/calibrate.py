"""Stage calibrate: second moments of the inputs of the layers, for activation-aware factors.

inputs   --model     model folder of a dense model (stage base)
         --cuts      cuts of one split with the family's features (stage features), .jsonl.gz
outputs  --out       moments.safetensors: for each layer the mean of x xᵀ, the mean of x, the number of frames
         --manifest  which utterances were used

The model runs over some utterances, one at a time, so that no padding is seen; frames of Whisper's window beyond the
utterance do not count. Whisper's decoder is calibrated on what it recognises itself (greedy search).

python -m lowrank_speech.stages.calibrate --cfg '{"seed":1,"layers":"ffn"}' --model base/model --cuts train.jsonl.gz
    --out calibrate/moments.safetensors --manifest calibrate/calibrate.json
"""

import argparse
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.artefact import Manifest, atomic
from lowrank_speech.errors import UserError
from lowrank_speech.stages import common

log = logging.getLogger(__name__)

# Bounds a decoder that does not find the end; people speak 3 to 5 tokens a second.
TOKENS_PER_SECOND = 10


@dataclass(frozen=True)
class Segment:
    """Utterances are cut to at most ``seconds``."""

    seconds: float | None = None


@dataclass(frozen=True)
class Config:
    """The stage's slice. ``layers`` as in the stage factorise; ``utterances`` are drawn by ``seed``."""

    seed: int
    layers: str | tuple[str, ...] = "ffn"
    utterances: int = 64
    segment: Segment | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.utterances < 1:
            raise ValueError(f"utterances is {self.utterances}; expected 1 or more")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help="model folder to calibrate")
    parser.add_argument("--cuts", required=True, type=Path, help="cuts with features, .jsonl.gz")
    parser.add_argument("--out", required=True, type=Path, help="output: moments, .safetensors")


def body(arguments: argparse.Namespace) -> None:
    cfg = common.read_cfg(arguments.cfg)
    config = common.from_json(Config, cfg)
    manifest = Manifest("calibrate", cfg, seed=config.seed)
    common.existing(arguments.model, "--model")
    common.existing(arguments.cuts, "--cuts")
    try:
        numbers = _run(arguments, config)
    except ValueError as error:
        raise UserError(f"calibrate {arguments.model}: {error}") from error
    manifest.device = numbers.pop("device")
    manifest.write(arguments.manifest, [arguments.out], numbers)


def _run(arguments: argparse.Namespace, config: Config) -> dict[str, Any]:
    import torch
    from tqdm import tqdm

    from lowrank_speech.features.batches import Loader
    from lowrank_speech.features.inputs import inputs_of
    from lowrank_speech.lang.select import SetAside
    from lowrank_speech.lowrank.moments import Moments
    from lowrank_speech.lowrank.select import select
    from lowrank_speech.models.device import pick_device
    from lowrank_speech.models.families import kept_out, layer_patterns
    from lowrank_speech.models.folder import load_model

    device = pick_device(config.device)
    model = load_model(arguments.model).to(device)
    if model.plan:
        raise UserError(f"calibrate: {arguments.model} is factorised already; give the dense model")
    layers = select(model.hf, layer_patterns(model.family, config.layers), exclude=kept_out(model.family))
    set_aside = SetAside()
    cuts = _draw(arguments.cuts, config, model, set_aside)
    loader = Loader(inputs_of(arguments.model, model.family, getattr(model.config, "num_mel_bins", 80)))
    moments = Moments(layers)
    with moments.hooked(), torch.no_grad():
        for cut in tqdm(cuts, desc="calibrate", unit="utterance", disable=None):
            batch = loader.collate([cut])
            _forward(model, batch["features"].to(device), batch["lengths"].to(device), cut, moments)
    with atomic(arguments.out) as temporary:
        moments.save(temporary)
    seconds = sum(cut.duration for cut in cuts)
    frames = min(moments.count.values())
    log.info("%d layers, %d utterances, %.1f s, %d frames at least", len(layers), len(cuts), seconds, frames)
    widest = max(layer.in_features for layer in layers.values())
    if frames < widest:
        log.warning(
            "%d frames for layers of up to %d inputs: their second moments lack full rank; use more utterances",
            frames, widest,
        )  # fmt: skip
    return {
        "utterances": [cut.id for cut in cuts],
        "seconds_speech": round(seconds, 3),
        "frames": dict(moments.count),
        "set_aside": [list(row) for row in set_aside.rows],
        "device": str(device),
    }


def _draw(path: Path, config: Config, model: Any, set_aside: Any) -> list[Any]:
    """``config.utterances`` of the usable cuts, drawn by the seed whatever the order in the file."""
    from lowrank_speech.features.batches import segment
    from lowrank_speech.features.store import load_cuts
    from lowrank_speech.lang.select import fits_window, require

    seconds = config.segment.seconds if config.segment else None
    cuts = sorted(segment(load_cuts(path), seconds, config.seed), key=lambda cut: cut.id)
    random.Random(config.seed).shuffle(cuts)
    usable = []
    for cut in list(fits_window(cuts, model.window_seconds, set_aside)):
        if len(usable) == config.utterances:
            break
        if model.frames_of(cut) < 1:
            set_aside.add(cut.id, "shorter than one frame", f"{cut.duration:.3f} s")
        else:
            usable.append(cut)
    require(usable, f"calibrate: {path}", set_aside)
    if len(usable) < config.utterances:
        log.warning("%s has %d usable cuts, fewer than the %d asked for", path, len(usable), config.utterances)
    return usable


def _forward(model: Any, features: Any, lengths: Any, cut: Any, moments: Any) -> None:
    """Run ``model`` on one utterance so that every layer of ``moments`` sees its inputs."""
    import torch

    if model.family != "whisper":
        model.states(features, lengths)
        return
    positions = model.config.max_source_positions
    mask = torch.arange(positions)[None, :] < model.frames_of(cut)
    with moments.masked({"*encoder_attn.[kv]_proj": mask, "*encoder.layers.*": mask}):
        if model.task != "seq2seq" or not any("decoder.layers." in name for name in moments.layers):
            model.states(features, lengths)
            return
        options = {}
        known = getattr(model.hf.generation_config, "lang_to_id", None) or {}
        if known:
            language = f"<|{cut.supervisions[0].language}|>"
            options = {"task": "transcribe", "language": language if language in known else None}
        model.hf.generate(
            input_features=model.pad_mel(features, lengths),
            num_beams=1,
            do_sample=False,
            return_timestamps=False,
            max_new_tokens=min(int(cut.duration * TOKENS_PER_SECOND) + 4, model.config.max_target_positions - 4),
            **options,
        )


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("calibrate", __doc__, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
