"""Where the time of one training step of our engine goes, by torch operation.

OMP_NUM_THREADS=1 python benchmarks/profile_step.py                       # the small wav2vec 2.0 of bench_trainer.py
python benchmarks/profile_step.py --preset whisper-base --method lora --batch 4

The step is bench_trainer.py's "+ front end stored" (Whisper: "+ log-mel stored") on the first --batch utterances of
speechocean762 (in $SPEECH_DATA, else noise), after two steps without the profiler. Rows: self time, in percent of all.
"""

import tempfile
from pathlib import Path

import torch

import timing
from engines import WARM, inputs, our_stepper, prepare, shape_of
from lowrank_speech.models.device import pick_device


def main():
    parser = timing.options(__doc__, rounds=1)
    parser.add_argument("--preset", default="small", help="as in bench_trainer.py; default: small")
    parser.add_argument("--method", default="full", choices=["full", "lora"], help="default: full")
    parser.add_argument("--batch", type=timing.positive(int), default=8, help="utterances; default: 8")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="default: fp32")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: auto")
    parser.add_argument("--rows", type=timing.positive(int), default=14, help="operations; default: 14")
    arguments = parser.parse_args()
    arguments.device, arguments.utterances = pick_device(arguments.device).type, arguments.batch
    shape_of(arguments.preset)
    from lowrank_speech.features.batches import Loader
    from lowrank_speech.features.store import load_cuts

    with tempfile.TemporaryDirectory() as folder:
        print(prepare(arguments, Path(folder)), flush=True)
        cuts = list(load_cuts(Path(folder) / "stored.jsonl.gz"))
        batch = Loader(inputs(arguments.preset)).collate(cuts)
    stepper = our_stepper(arguments, arguments.method == "lora")
    for _ in range(WARM):
        stepper.step([batch], 100)
    with torch.profiler.profile() as profile:
        for _ in range(arguments.rounds):
            stepper.step([batch], 100)
    kind = "self_device_time_total" if arguments.device == "cuda" else "self_cpu_time_total"
    times = {event.key: (getattr(event, kind), event.count) for event in profile.key_averages()}
    whole = sum(time for time, _ in times.values())
    ordered = sorted(times.items(), key=lambda item: -item[1][0])[: arguments.rows]
    found = [
        {"operation": name, "%": 100 * time / whole, "ms": time / 1000 / arguments.rounds, "calls": count}
        for name, (time, count) in ordered
    ]
    timing.show(f"step of {arguments.preset}, {arguments.method}", found, arguments.json)


if __name__ == "__main__":
    timing.run(main)
