"""Shared by the benchmarks of whole models: shapes, utterances, a clock with peak memory, child processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from lowrank_speech.errors import UserError


def shape(name, layers, *families):
    """A preset and its transformers config, with only ``layers`` layers if not None.

    Raises UserError if no preset of ``families`` has this name.
    """
    from transformers import AutoConfig

    from lowrank_speech.models.build import quiet_config
    from lowrank_speech.models.presets import PRESETS

    known = {key: preset for key, preset in PRESETS.items() if preset.family in families}
    if name not in known:
        raise UserError(f"--preset {name}: expected one of: {', '.join(known)}")
    preset = known[name]
    config = dict(preset.config)
    for key in ("num_hidden_layers", "encoder_layers", "decoder_layers"):
        if layers and key in config:
            config[key] = layers
    return preset, quiet_config(AutoConfig.for_model(preset.model_type, **config))


def check_tokens(tokens, config):
    """Raise UserError if Whisper cannot generate ``tokens`` tokens."""
    if tokens >= config.max_target_positions:
        raise UserError(f"--tokens {tokens}: this Whisper model generates at most {config.max_target_positions - 1}")


def utterances(number, folder):
    """Cuts with recordings, and a description of them."""
    import soundfile
    from lhotse import MonoCut, Recording, SupervisionSegment

    from lowrank_speech.corpora.kaldi import read_directory

    root = Path(os.environ.get("SPEECH_DATA", "")) / "speechocean762"
    if os.environ.get("SPEECH_DATA") and root.is_dir():
        found = list(read_directory(root, "train", "en"))
        found = [(u.id, u.audio, u.text) for u in found[:: max(1, len(found) // number)][:number]]
        what = "speechocean762"
    else:
        rng, found, what = np.random.default_rng(1), [], "noise, log-normal durations"
        for i, seconds in enumerate(rng.lognormal(np.log(3.6), 0.35, number).clip(1.5, 15)):
            path = folder / f"n{i}.wav"
            soundfile.write(path, 0.1 * rng.standard_normal(int(16_000 * seconds)), 16_000)
            found.append((f"n{i}", str(path), "".join(rng.choice(list("abcdefgh "), int(6 * seconds)))))
    cuts = []
    for name, path, text in found:
        recording = Recording.from_file(path, recording_id=name)
        supervision = SupervisionSegment(name, name, 0.0, recording.duration, text=text, language="en")
        cuts.append(MonoCut(name, 0.0, recording.duration, 0, [supervision], recording=recording))
    return cuts, what


class Clock:
    """Wall time, CPU time and peak memory from ``begin`` to ``end``."""

    def __init__(self, device):
        self.on_cuda, self.cuda = device == "cuda", None

    def begin(self):
        if self.on_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        Path("/proc/self/clear_refs").write_text("5")
        self.start = time.perf_counter(), time.process_time()

    def end(self):
        if self.on_cuda:
            torch.cuda.synchronize()
        self.seconds, self.cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        status = Path("/proc/self/status").read_text().splitlines()
        self.rss = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
        if self.on_cuda:
            self.cuda = torch.cuda.max_memory_allocated()


def own_process(script, what, arguments):
    """Run ``script --child`` with ``arguments`` and ``what``; returns the JSON that it prints, or raises UserError."""
    command = [sys.executable, script, "--child", json.dumps({**vars(arguments), **what}, default=str)]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stderr.strip().rpartition("\n")[2]
    if done.returncode == 2 and last.startswith("error: "):  # from timing.run
        raise UserError(last.removeprefix("error: "))
    if done.returncode:
        raise SystemExit(f"{what}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
