"""The training engine against ``transformers.Trainer``: same model, data, precision, optimiser and effective batch.

python benchmarks/bench_trainer.py                                     # a small wav2vec 2.0 on the CPU
python benchmarks/bench_trainer.py --methods lora --utterances 40      # one table, quicker
python benchmarks/bench_trainer.py --preset xls-r-300m --precision bf16 --utterances 1600 --batch 16 --workers 4
python benchmarks/bench_trainer.py --preset whisper-small --precision bf16 --utterances 400 --batch 8 --workers 4

The data are --utterances of speechocean762 (in $SPEECH_DATA), or else noise with similar log-normal durations (median
3.6 s, sigma 0.35). The loss is CTC (Whisper: cross-entropy on letters). Weights are random and wav2vec 2.0's front end
is frozen; no dropout, masks or layer-drop; AdamW (fused in both), clip 1. ``full`` trains all other weights; ``lora``
trains adapters of rank 8 on query, value and feed-forward, and a CTC head (with peft in the trainer).

    trainer              --batch utterances drawn at random, padded to the longest: the usual setup. It reads decoded
                         and normalised inputs from .npy, whereas ours decodes the audio files of the corpus
    trainer, by length   with group_by_length, given lengths, in groups of 50 batches or of all batches if fewer
    ours, same batches   our step on the batches of the first row; computes the front end in pieces (front_end.py)
    + by duration        our batches by duration, sized to give the same number of updates in a pass
    + front end stored   reads the output of the frozen convolutions from the store (`features: conv`)
    and checkpointing    recomputes each layer's activations
    and bf16             LoRA: computes in bf16 (as the trainer's bf16 row does) and stores frozen weights in bf16
    and both

Whisper pads every utterance to its window, so batching by length does not matter, and has no frozen front end:

    trainer              reads log-mels that WhisperFeatureExtractor has computed
    ours, same batches   computes log-mels while reading
    + log-mel stored
    + a short window     of the longest utterance, in whole seconds (`bases.<name>.window`). This changes the function
                         of the model, which then needs fine-tuning, as here
    and checkpointing ... as above

Only with --rows, because compiling takes minutes on a CPU (the time is mostly in the two warm-up updates):

    trainer, by length, compiled; trainer, compiled     with torch_compile
    and compiled                                        with `training.compile`

Each row runs in its own process: two warm-up updates, then one pass over the same utterances.

    s/s         seconds of speech (without padding) per second of wall time, including reading
    CPU s       CPU time of the process in the pass; hardly affected by other work on the machine
    MB          peak memory of the process during the pass (VmHWM, reset before it), including libraries
    CUDA MB     max_memory_allocated; on CUDA, the memory ratios use it
    padding %   share of padding in the seconds that the model computes
    x speed, x MB          ratio to ``trainer``: medians over --rounds of the ratios within a round
    ..., by length         ratio to ``trainer, by length`` (``..., bf16``: to Whisper's ``trainer, bf16``)

First, loss and gradient norm of one batch are compared: trainer, ours on waveforms, ours on the store. The time to
store the front end's output (one pass) is printed above the tables. The convolutions are a large share of a small
model's step, so this gains more here than in XLS-R 300M.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import speech
import timing
from engines import BETAS, DECAY, LR, WARM, batches_of, hf_trainer, inputs, is_whisper, our_stepper, prepare, shape_of
from lowrank_speech.models.device import pick_device

BF16 = {"precision": "bf16", "frozen_dtype": "bf16"}
CHECKPOINTS = {"gradient_checkpointing": True}
COMPILE = {"compile": True}
# engine, batches, read from the store, further settings
TRAINER = {
    "trainer": ("trainer", "random", False, {}),
    "trainer, by length": ("trainer", "length", False, {}),
    "trainer, by length, checkpointing": ("trainer", "length", False, CHECKPOINTS),
    "trainer, by length, bf16": ("trainer", "length", False, {"bf16": True}),
}
WAV2VEC2 = TRAINER | {
    "trainer, by length, compiled": ("trainer", "length", False, {"torch_compile": True}),
    "ours, same batches": ("ours", "random", False, {}),
    "+ by duration": ("ours", "duration", False, {}),
    "+ front end stored": ("ours", "duration", True, {}),
    "and checkpointing": ("ours", "duration", True, CHECKPOINTS),
    "and bf16": ("ours", "duration", True, BF16),
    "and both": ("ours", "duration", True, BF16 | CHECKPOINTS),
    "and compiled": ("ours", "duration", True, COMPILE),
}
SHORT = {"window": True}
WHISPER = {
    "trainer": TRAINER["trainer"],
    "trainer, checkpointing": ("trainer", "random", False, CHECKPOINTS),
    "trainer, bf16": ("trainer", "random", False, {"bf16": True}),
    "trainer, compiled": ("trainer", "random", False, {"torch_compile": True}),
    "ours, same batches": ("ours", "random", False, {}),
    "+ log-mel stored": ("ours", "random", True, {}),
    "+ a short window": ("ours", "random", True, SHORT),
    "and checkpointing": ("ours", "random", True, SHORT | CHECKPOINTS),
    "and bf16": ("ours", "random", True, SHORT | BF16),
    "and both": ("ours", "random", True, SHORT | BF16 | CHECKPOINTS),
    "and compiled": ("ours", "random", True, SHORT | COMPILE),
}
NOT_BY_DEFAULT = ("trainer, by length, compiled", "trainer, compiled", "and compiled")
LORA_ALONE = ("trainer, by length, bf16", "trainer, bf16", "and bf16", "and both")


def rows_for(preset):
    return WHISPER if is_whisper(preset) else WAV2VEC2


def measure(a):
    """Measure one row in this process: speed and memory of a pass, its padding and updates."""
    from lowrank_speech.features.batches import Loader
    from lowrank_speech.features.kept import ListedCuts
    from lowrank_speech.features.store import load_cuts

    engine, kind, stored, settings = rows_for(a.preset)[a.row]
    folder, lora, clock = Path(a.folder), a.method == "lora", speech.Clock(a.device)
    durations = [cut.duration for cut in load_cuts(folder / "waveform.jsonl.gz")]
    numbers = batches_of(kind, durations, a.batch, a.seed)
    warm = [list(range(i * a.batch, (i + 1) * a.batch)) for i in range(WARM)]
    if engine == "trainer":
        order = [i for batch in warm + numbers for i in batch]
        hf_trainer(a, folder, lora, order, clock, **settings).train()
    else:
        if "window" in settings:
            settings = settings | {"window": math.ceil(max(durations))}
        stepper = our_stepper(a, lora, **settings)
        cuts = ListedCuts(load_cuts(folder / f"{'stored' if stored else 'waveform'}.jsonl.gz"))
        loader, updates = Loader(inputs(a.preset), workers=a.workers), WARM + len(numbers)
        for batch in loader.load(cuts, ((batch, True) for batch in warm + numbers)):
            stepper.step([batch], updates)
            if stepper.steps == WARM:
                clock.begin()
        clock.end()
    if is_whisper(a.preset):
        computed = settings.get("window", 30) * len(durations)
    else:
        computed = sum(max(durations[i] for i in batch) * len(batch) for batch in numbers)
    spoken = sum(durations)
    found = {
        "speed": spoken / clock.seconds,
        "cpu": clock.cpu,
        "updates": len(numbers),
        "padding": 100 * (1 - spoken / computed),
    }
    return found | {"rss": clock.rss / 1e6, "cuda": clock.cuda and clock.cuda / 1e6}


def agreement(a):
    """Check that loss and gradient norm of a float32 batch equal the trainer's; returns a line with times of AdamW."""
    from lowrank_speech.features.batches import Loader
    from lowrank_speech.features.store import load_cuts

    a.precision, folder, size = "fp32", Path(a.folder), min(4, a.batch)
    trainer = hf_trainer(a, folder, False, None, None)
    if not is_whisper(a.preset):
        trainer.model.config.ctc_loss_reduction = "sum"
    items = [trainer.train_dataset[i] for i in range(size)]
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(items)))
    loss.backward()
    found = [(loss.item(), norm(trainer.model.parameters()))]
    del trainer, loss
    stepper = our_stepper(a, False)
    for kind in ("waveform", "stored"):
        cuts = list(load_cuts(folder / f"{kind}.jsonl.gz"))[:size]
        losses = stepper.losses(Loader(inputs(a.preset)).collate(cuts))
        # The trainer's CTC loss averages per label within each utterance, then over utterances, so compare sums.
        scale = 1 if is_whisper(a.preset) else losses.units
        (losses.total * scale).backward()
        found.append((losses.task_sum * scale / losses.units, norm(stepper.parameters)))
        stepper.optimiser.zero_grad()
    for ours in found[1:]:
        if not np.allclose(ours, found[0], rtol=1e-4 if a.device == "cpu" else 1e-3):
            raise SystemExit(f"loss and gradient norm differ from the trainer's: {found}")
    for p in stepper.parameters:
        p.grad = torch.full_like(p, 1e-4)
    millions, times = sum(p.numel() for p in stepper.parameters) / 1e6, []
    for fused in (True, False):
        optimiser = torch.optim.AdamW(stepper.parameters, lr=LR, betas=BETAS, weight_decay=DECAY, fused=fused)
        times.append(1000 * statistics.median(timing.interleaved([optimiser.step], 3, a.device)[0]))
        del optimiser
    line = "loss and gradient norm of one batch agree: {:.4f}, {:.4f}; ".format(*found[0])
    return line + f"AdamW on {millions:.1f} M: fused {times[0]:.0f} ms, not fused {times[1]:.0f} ms"


def norm(parameters):
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]).item()


def rows_of(rounds):
    """The table of a method from its rounds, each a dict of rows."""
    rows = []
    for name, one in rounds[0].items():

        def median(key, base=None, name=name):
            found = [r[name][key] / (r[base][key] if base else 1) for r in rounds]
            return statistics.median(found)

        row = {"row": name, "s/s": median("speed"), "CPU s": round(median("cpu")), "MB": round(median("rss"))}
        row |= {
            "CUDA MB": one["cuda"] and round(median("cuda")),
            "padding %": one["padding"],
            "updates": one["updates"],
        }
        memory = "cuda" if one["cuda"] else "rss"
        for base, of in (("trainer", ""), ("trainer, by length", ", by length"), ("trainer, bf16", ", bf16")):
            there = base in rounds[0]
            if not there and of:
                continue
            row[f"x speed{of}"] = median("speed", base) if there else None
            row[f"x MB{of}"] = median(memory, base) if there else None
        rows.append(row)
    return rows


def main():
    parser = timing.options(__doc__, rounds=1)
    parser.add_argument("--preset", default="small", help="small (44 M, default), or e.g. xls-r-300m, whisper-small")
    parser.add_argument(
        "--methods", nargs="+", default=["full", "lora"], choices=["full", "lora"], help="default: both"
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="default: all but the compiled ones")
    parser.add_argument("--utterances", type=timing.positive(int), default=48, help="default: 48")
    parser.add_argument("--batch", type=timing.positive(int), default=8, help="utterances per update; default: 8")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="default: fp32")
    parser.add_argument("--workers", type=timing.at_least(0, int), default=0, help="data loader processes; default: 0")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: auto")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child = SimpleNamespace(**arguments.child)
        print(json.dumps(measure(child) if child.row else agreement(child)))
        return
    arguments.device = pick_device(arguments.device).type
    shape_of(arguments.preset)
    if arguments.utterances < WARM * arguments.batch:
        parser.error(f"--utterances must be at least {WARM * arguments.batch}, for {WARM} warm-up updates")
    known = rows_for(arguments.preset)
    if unknown := set(arguments.rows or ()) - set(known):
        parser.error(f"--rows: unknown {', '.join(map(repr, sorted(unknown)))}; known: {', '.join(map(repr, known))}")
    with tempfile.TemporaryDirectory() as folder:
        print(prepare(arguments, Path(folder)), flush=True)
        print(speech.own_process(__file__, {"row": None, "folder": folder}, arguments), flush=True)
        for method in arguments.methods:
            rows = arguments.rows or [name for name in known if name not in NOT_BY_DEFAULT]
            chosen = [name for name in rows if method == "lora" or name not in LORA_ALONE]
            rounds = []
            for seed in range(arguments.rounds):
                rounds.append({})
                for name in chosen:
                    what = {"method": method, "row": name, "seed": seed, "folder": folder}
                    rounds[-1][name] = speech.own_process(__file__, what, arguments)
                    print(f"{method}, round {seed + 1}, {name}: {rounds[-1][name]}", file=sys.stderr)
            timing.show(f"trainer, {method}", rows_of(rounds), arguments.json)


if __name__ == "__main__":
    timing.run(main)
