"""The stage train in several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lhotse import CutSet
from safetensors.torch import load_file

from lowrank_speech.errors import STOPPED
from lowrank_speech.stages import factorise, train
from stage_world import done, refused, train_cfg, train_paths


def torchrun_command(world, cfg, folder, processes=2, runtime=None, **changed):
    command = [sys.executable, "-m", "lowrank_speech.training.process.torchrun", str(processes)]
    command += ["lowrank_speech.stages.train", "--cfg", json.dumps(cfg), "--manifest", str(folder / "train.json")]
    command += ["--runtime", json.dumps(runtime or {})]
    for name, path in train_paths(world, "wav2vec2", folder, **changed).items():
        command += [f"--{name.replace('_', '-')}", str(path)]
    return command


def torchrun(*arguments, **keys):
    """The stage train by two processes; the finished process."""
    command = torchrun_command(*arguments, **keys)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_two_processes_train_what_one_trains_with_twice_the_batches(world, tmp_path):
    # Batches of one to three utterances, in groups of which the last is not full: 2 processes x 2 batches.
    recipe = {"batch_seconds": 0.7, "keep": "last", "weight_decay": 0.0, "language_weight": 0.5}
    one = train_cfg(training=recipe | {"accumulate": 4})
    two = train_cfg(training=recipe | {"accumulate": 2, "processes": 2})
    alone = done(train, one, tmp_path / "one" / "train.json", **train_paths(world, "wav2vec2", tmp_path / "one"))
    found = torchrun(world, two, tmp_path / "two")
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("utterances, ") == 1  # the second process is silent
    record = json.loads((tmp_path / "two" / "train.json").read_text(encoding="utf-8"))
    for key in ("steps", "epochs", "utterances_train", "dev_metric", "parameters_trained"):
        assert record["metrics"][key] == alone["metrics"][key], key
    left, right = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    start = load_file(world.base["wav2vec2"] / "model.safetensors")
    assert any(not torch.allclose(start[n], p, atol=1e-3) for n, p in left.items())
    for name, p in left.items():
        torch.testing.assert_close(right[name], p, atol=2e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    rows = [[json.loads(r) for r in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")]
    for a, b in zip(*rows, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}


@pytest.mark.slow
def test_two_processes_truncate_and_learn_from_a_teacher_as_one_does(world, systems, tmp_path):
    recipe = {"batch_seconds": 0.7, "keep": "last", "weight_decay": 0.0}
    started = {"model": tmp_path / "factorised", "teacher": systems["wav2vec2", "asr"].model}
    cfg = {"seed": 1, "factorise": {"layers": "ffn", "fraction": 0.25}, "start": 1.0}
    done(factorise, cfg, tmp_path / "f.json", model=world.base["wav2vec2"], out=started["model"])
    keys = {"progressive": {"stages": 2}, "distil": {"hidden": 0.5}}
    one = train_cfg(training=recipe | {"accumulate": 2}, **keys)
    two = train_cfg(training=recipe | {"processes": 2}, **keys)
    paths = train_paths(world, "wav2vec2", tmp_path / "one", **started)
    alone = done(train, one, tmp_path / "one" / "train.json", **paths)
    found = torchrun(world, two, tmp_path / "two", **started)
    assert found.returncode == 0, found.stderr
    record = json.loads((tmp_path / "two" / "train.json").read_text(encoding="utf-8"))
    for key in ("steps", "parameters_total", "parameters_trained", "parameters_teacher"):
        assert record["metrics"][key] == alone["metrics"][key], key
    rows = [[json.loads(r) for r in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")]
    for a, b in zip(*rows, strict=True):
        assert a["loss_hidden"] > 0 and a == pytest.approx(b, rel=1e-2, abs=1e-3)


@pytest.mark.slow
def test_two_processes_that_are_stopped_go_on_and_end_as_they_would_have_ended(world, tmp_path):
    # Draws of each process: dropout and masks. A state after every update.
    recipe = {"batch_seconds": 0.7, "dropout": 0.2, "spec_augment": {}, "average": 2, "keep": "last", "epochs": 4}
    cfg, runtime = train_cfg(training=recipe | {"processes": 2}), {"workers": 1, "save_minutes": 1e-6}
    whole = torchrun(world, cfg, tmp_path / "whole", runtime=runtime)
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "stopped"
    folder.mkdir()
    scratch = train_paths(world, "wav2vec2", folder)["scratch"]
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(torchrun_command(world, cfg, folder, runtime=runtime), stdout=log, stderr=log)
        while not states(scratch) and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGUSR1)
        code = running.wait(60)
    text = (folder / "log").read_text()
    assert code == STOPPED and text.count("stopped by SIGUSR1") == 1 and "Traceback" not in text, text
    assert states(scratch) and not (folder / "train.json").exists(), text
    again = torchrun(world, cfg, folder, runtime=runtime)
    assert again.returncode == 0 and again.stderr.count("continuing from") == 1, again.stderr
    left, right = (json.loads((tmp_path / n / "train.json").read_text())["outputs"] for n in ("whole", "stopped"))
    assert left == right
    assert not list(scratch.iterdir())


def states(scratch):
    return list(scratch.glob("*/state-*.pt"))


@pytest.mark.slow
def test_processes_end_with_a_torchrun_that_is_killed(world, tmp_path):
    cfg = train_cfg(training={"batch_seconds": 0.7, "epochs": 5000, "processes": 2})
    with (tmp_path / "log").open("w") as log:
        command = torchrun_command(world, cfg, tmp_path, runtime={"workers": 1})
        running = subprocess.Popen(command, stdout=log, stderr=log)
        scratch = train_paths(world, "wav2vec2", tmp_path)["scratch"]
        while not states(scratch) and running.poll() is None:
            time.sleep(0.01)
        assert running.poll() is None, (tmp_path / "log").read_text()
        running.kill()
        running.wait()
    deadline = time.monotonic() + 60
    while (left := naming(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, (tmp_path / "log").read_text()


@pytest.mark.slow
def test_the_first_of_several_processes_alone_goes_through_the_cuts(world, tmp_path):
    empty = tmp_path / "empty.jsonl.gz"
    CutSet.from_cuts([]).to_file(empty)
    found = torchrun(world, train_cfg(training={"processes": 2}), tmp_path, train_cuts=empty)
    assert found.returncode == 2 and found.stderr.count("no utterance is left") == 1, found.stderr
    assert "[rank" not in found.stderr and "Traceback" not in found.stderr


# Signals on the way from the last output to the end of torchrun's own process.
LATE = """
import os, signal, sys
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from lowrank_speech.training.process import torchrun

real = LocalElasticAgent.run

def run(self, *given):
    done = real(self, *given)
    os.kill(os.getpid(), signal.SIGTERM)  # its handler raises, here and in what comes after
    return done

LocalElasticAgent.run = run
sys.exit(torchrun.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_signal_after_the_last_output_does_not_fail_a_finished_run(world, tmp_path):
    cfg = train_cfg(training={"epochs": 1, "processes": 2})
    command = torchrun_command(world, cfg, tmp_path)
    command[1:3] = ["-c", LATE]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 0 and (tmp_path / "train.json").is_file(), found.stderr


def naming(folder):
    """The processes in whose command line or open files a folder is, without this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            named = [path.joinpath("cmdline").read_text(), *(str(fd.readlink()) for fd in path.glob("fd/*"))]
        except OSError:  # gone meanwhile
            continue
        if path.name != str(os.getpid()) and any(str(folder) in name for name in named):
            found.append(path.name)
    return found


def test_another_number_of_processes_than_the_configs_is_refused(world, tmp_path, capsys):
    cfg = train_cfg(training={"processes": 2})
    message = (
        "training.processes is 2, but 1 is running: set it to 1, or start `python -m lowrank_speech.training.process"
    )
    refused(capsys, message, train, cfg, tmp_path / "train.json", **train_paths(world, "wav2vec2", tmp_path))
