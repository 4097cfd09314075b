"""wav2vec 2.0's frozen convolutions computed in pieces of half a second, compared with the whole utterance at once.

XLS-R's shape, random weights, noise; no gradients, as in training and recognition from samples and in the stage
`features`. float32, and bfloat16 autocast. Memory is the peak of the tensors alive at one time.

OMP_NUM_THREADS=1 python benchmarks/front_end.py
"""

import contextlib

import torch
from torch import Tensor, nn

import timing
from bench_memory import MIB, Alive
from lowrank_speech.models import presets
from lowrank_speech.models.build import build
from lowrank_speech.models.families.wav2vec2 import through
from lowrank_speech.models.speech import SpeechModel


def model(device: str) -> SpeechModel:
    """XLS-R's front end, and one encoder layer, which the benchmark does not use."""
    from transformers import AutoConfig

    preset = presets.preset_named("xls-r-300m")
    config = AutoConfig.for_model(preset.model_type, **preset.config | {"num_hidden_layers": 1})
    torch.manual_seed(0)
    return build("body", config).requires_grad_(False).to(device)


def whole(net: SpeechModel, waveforms: Tensor) -> Tensor:
    """Run each layer over the whole length, as transformers does."""
    layers: list[nn.Module] = list(net.body.feature_extractor.conv_layers)
    return through(layers, waveforms[:, None]).transpose(1, 2)


def peak(work) -> int:
    """Peak bytes of the tensors that ``work`` creates."""
    with Alive() as alive:
        work()
    return alive.peak([])


def compare(net: SpeechModel, rows: int, seconds: int, device: str, half: bool, rounds: int) -> dict:
    """One row of the table. Raises AssertionError if the results differ by more than rounding."""
    waveforms = torch.randn(rows, 16_000 * seconds, device=device)
    lengths = torch.full((rows,), 16_000 * seconds)
    context = torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext()
    with torch.no_grad(), context:
        works = [lambda: whole(net, waveforms), lambda: net.conv_features(waveforms, lengths)]
        one, other = (work() for work in works)
        assert (one - other).abs().max() <= (2e-2 if half else 1e-4) * one.abs().max(), "the features differ"
        times = timing.interleaved(works, rounds, device)
        before, after = map(peak, works)
    return {
        "batch": f"{rows} x {seconds} s",
        "precision": "bf16" if half else "fp32",
        "device": device,
        "whole ms": round(1e3 * sorted(times[0])[rounds // 2]),
        "pieces ms": round(1e3 * sorted(times[1])[rounds // 2]),
        "x speed": round(timing.ratio(*times), 2),
        "whole MiB": round(before / MIB, 1),
        "pieces MiB": round(after / MIB, 1),
    }


def main() -> None:
    arguments = timing.options(__doc__, rounds=7).parse_args()
    for device in timing.devices():
        net = model(device)
        shapes = [(1, 3), (1, 5), (1, 20), (8, 5), (8, 10)]
        found = [compare(net, *shape, device, half, arguments.rounds) for shape in shapes for half in (False, True)]
        timing.show("front end", found, arguments.json)


if __name__ == "__main__":
    timing.run(main)
