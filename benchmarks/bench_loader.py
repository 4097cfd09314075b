"""Start-up time and memory of the data loader for corpora of 1 to 1,000 hours.

python benchmarks/bench_loader.py                 # 1, 10, 100 and 1,000 h
python benchmarks/bench_loader.py --hours 1 10    # faster

The manifests repeat --templates cuts of 1 to 6 s with new ids, all from one recording. Each row of the table is
measured in its own processes. Modes:

    eager      all cuts in memory, filtered as lists, with Lhotse's sampler (the stages' first loader)
    kept       the current loader: one pass writes the usable cuts to disk with a table of offsets and durations
    kept+2     the same with two workers

Columns; all memory is in addition to that of the imported libraries:

    prepare    CPU time in s to read and filter the manifest, once per training
    count      CPU time in s to count the batches of one epoch for the schedule, once per training (saved in its state)
    again      CPU time in s of these two when a training resumes (eager: everything is done again)
    start      wall time in s from prepared cuts to the first batch with its audio
    at prepare peak memory of the process after prepare, MiB
    training   memory after 20 batches including workers, MiB (PSS; kept: in a new process, which opens the files)
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

import timing
from lowrank_speech.errors import UserError

MEAN = 3.5  # seconds per cut
BATCH, SEED = 60.0, 1
MODES = ("eager", "kept", "kept+2")
HEAD = ("hours", "cuts", "mode", "prepare", "count", "again", "start", "at prepare", "training")


def make(hours, templates, folder):
    """Write a manifest of ``hours`` (.jsonl.gz) and the recording of its cuts; returns its path and number of cuts."""
    import soundfile
    from lhotse import MonoCut, Recording, SupervisionSegment

    rng, wav, path = np.random.default_rng(1), folder / "noise.wav", folder / f"{hours:g}h.jsonl.gz"
    if not wav.is_file():
        soundfile.write(wav, 0.1 * rng.standard_normal(60 * 16_000), 16_000)
    recording, lines = Recording.from_file(wav, recording_id="noise"), []
    for seconds in rng.uniform(1, 2 * MEAN - 1, templates).round(3).tolist():
        words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(int(2 * seconds))]
        supervision = SupervisionSegment("ID", "noise", 0.0, seconds, text=" ".join(words), language="de", speaker="s1")
        start = float(rng.integers(50))
        lines.append(json.dumps(MonoCut("ID", start, seconds, 0, [supervision], recording=recording).to_dict()))
    number = int(hours * 3600 / MEAN)
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        for i in range(number):
            file.write(lines[i % templates].replace('"ID"', f'"cut-{i:08d}"') + "\n")
    return path, number


def usable(path):
    """Yield the cuts that a CTC training can use, with their targets."""
    from lowrank_speech.features.store import load_cuts
    from lowrank_speech.lang.load import Lang
    from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser
    from lowrank_speech.lang.select import SetAside, one_supervision
    from lowrank_speech.lang.tokens import CharTokens
    from lowrank_speech.training.config import TrainConfig
    from lowrank_speech.training.data.targets import with_targets
    from lowrank_speech.training.losses.loss import Materials
    from lowrank_speech.training.losses.objective import make_objective

    lang = Lang("char", CharTokens.build("abcdefgh "), ("de",), Normaliser(NormaliseConfig()), "0")
    objective = make_objective("ctc", Materials(TrainConfig(), lang, lang.tokens))
    for cut in one_supervision(load_cuts(path, lazy=True), SetAside()):
        targets = objective.prepare(cut, lambda cut: cut.num_samples // 320)
        if isinstance(targets, dict):
            yield with_targets(cut, targets)


def prepare(path, folder):
    """The usable cuts of ``path``, written to ``folder`` or already there from an earlier run."""
    from lowrank_speech.features.kept import keep
    from lowrank_speech.lang.select import Languages, SetAside
    from lowrank_speech.training.data.prepared import prepared
    from lowrank_speech.training.data.splits import SPLITS, Usable

    def make():
        languages, (train, dev) = Languages(), (folder / name for name in SPLITS)
        return Usable(keep(languages.over(usable(path)), train), keep(islice(usable(path), 100), dev), languages, [])

    return prepared(folder, "key", make, SetAside()).train


def sampled(cuts):
    """The batches of the first epoch, from Lhotse's sampler over cuts in memory."""
    from lhotse.dataset import DynamicBucketingSampler

    sampler = DynamicBucketingSampler(
        cuts, max_duration=BATCH, num_buckets=10, buffer_size=20_000, shuffle=True, seed=SEED, rank=0, world_size=1
    )
    sampler.set_epoch(0)
    return sampler


def pss():
    """Proportional set size (PSS) of this process and its children, in MiB."""
    pids = [os.getpid(), *map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(line.split()[1]) for text in rollups for line in text.splitlines() if line.startswith("Pss:")) / 1024


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(mode, path, scratch):
    """Run one measurement in this process; returns a part of the row."""
    import torch
    from lhotse import CutSet

    from lowrank_speech.features.batches import Loader, batch_indices
    from lowrank_speech.features.inputs import Inputs
    from lowrank_speech.training.data import prepared, splits  # noqa: F401  (do not measure their import)

    torch.set_num_threads(1)
    base, base_peak, found, cpu = pss(), peak(), {}, time.process_time
    if mode in ("eager", "keep"):
        start = cpu()
        cuts = CutSet.from_cuts(list(usable(path))) if mode == "eager" else prepare(path, scratch)
        found["prepare"], found["at prepare"] = cpu() - start, peak() - base_peak
        start = cpu()
        found["batches"] = sum(1 for _ in (sampled(cuts) if mode == "eager" else batch_indices(cuts, BATCH, SEED, 0)))
        found["count"] = cpu() - start
    if mode == "keep":
        return found
    if mode != "eager":
        start = cpu()
        cuts = prepare(path, scratch)
        found["again"] = cpu() - start
    loader = Loader(Inputs("waveform"), workers=2 if mode == "kept+2" else 0)
    start = time.perf_counter()
    batches = map(loader.collate, map(list, sampled(cuts))) if mode == "eager" else loader.train(cuts, BATCH, SEED, 0)
    next(batches)
    found["start"] = time.perf_counter() - start
    for _ in islice(batches, 19):
        pass
    return found | {"training": pss() - base}


def run(mode, path, scratch):
    command = [sys.executable, __file__, "--child", mode, str(path), str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{mode} {path}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    hours = {"type": timing.positive(float), "default": [1, 10, 100, 1000], "help": "default: 1 10 100 1000"}
    parser.add_argument("--hours", nargs="+", **hours)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES, help="default: all")
    parser.add_argument("--templates", type=timing.positive(int), default=1000, help="distinct cuts; default: 1000")
    parser.add_argument("--child", nargs=3, metavar=("MODE", "CUTS", "SCRATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        mode, path, scratch = arguments.child
        print(json.dumps(child(mode, path, Path(scratch))))
        return
    if (fewest := min(arguments.hours)) * 3600 < MEAN:
        raise UserError(f"--hours {fewest:g}: less than one cut of {MEAN:g} s; expected at least 0.001")
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    for hours in arguments.hours:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            path, number = make(hours, arguments.templates, folder)
            scratch = folder / "scratch"
            kept = run("keep", path, scratch) if set(arguments.modes) - {"eager"} else {}
            for mode in arguments.modes:
                row = {"hours": f"{hours:g}", "cuts": f"{number:,}", "mode": mode}
                row |= kept if mode != "eager" else {"again": "-"}
                row |= run(mode, path, scratch)
                shown = [value if isinstance(value := row[key], str) else f"{value:.1f}" for key in HEAD]
                print(f"| {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    timing.run(main)
