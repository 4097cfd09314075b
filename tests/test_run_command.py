"""``lowrank-speech run``, ``status`` and ``plan``: what runs, what is done, and why something would run."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lowrank_speech import cli
from lowrank_speech.workflow import experiments
from lowrank_speech.workflow.experiments import Experiment, checked, read_schema
from lowrank_speech.workflow.jobs import jobs
from lowrank_speech.workflow.logs import Attempt, last_attempt, progress
from workflow_tree import REPOSITORY, Tree, tiny_config


@pytest.fixture
def call(capsys, monkeypatch):
    """Run a command: exit code, stdout, stderr."""
    monkeypatch.setattr(logging.root, "handlers", [])

    def call(*argv):
        with pytest.raises(SystemExit) as left:
            cli.main([*map(str, argv)])
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder without the workflow, in which `run` has run everything with stub stages."""
    tree = Tree(tmp_path_factory.mktemp("run"))
    for name in ("Snakefile", "config.yaml"):
        (tree.root / name).unlink()
    for name in ("workflow", "src", "envs"):
        shutil.rmtree(tree.root / name)
    config = tiny_config()
    config["systems"] = {"bases": ["wav2vec2"], "tasks": ["asr"], "methods": ["full", "lowrank", "aware"]}
    tree.write(config, "mine.yaml")
    found = subprocess.run(
        [sys.executable, "-m", "lowrank_speech", "run", "mine.yaml", "--cores", "2", "--", "--quiet", "rules"],
        cwd=tree.root,
        env=environment(tree),
        text=True,
        capture_output=True,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.endswith("\nstub\n\nexp/tiny/report/report.html\n")
    assert (tree.root / ".snakemake").is_dir()
    return tree, config


def environment(tree):
    return os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "LOWRANK_SPEECH_BIN": str(tree.root / "bin")}


@pytest.fixture
def here(done, monkeypatch):
    """In the folder of ``done``."""
    monkeypatch.chdir(done[0].root)
    return done


def states(call, config="mine.yaml"):
    code, shown, error = call("status", config, "--json")
    assert code == 0, error
    return {one["manifest"].removeprefix("exp/tiny/"): one for one in json.loads(shown)["jobs"]}


# -- the graph ---------------------------------------------------------------------------------------------------------


def rich_config():
    """Every kind of edge: language models, graphs, emissions, tuning, distillation, truncation, back ends."""
    config = tiny_config()
    config["corpora"]["ocean"]["splits"]["test"]["part"] = [0, 0.5]
    config["corpora"]["ocean"]["splits"]["more"] = {"source": "dev", "part": [0.5, 1]}
    config["lms"] = {"words": {"lang": "chars", "dev": {"corpus": "babel", "split": "dev"}}}
    config["decoders"] = {
        "hlg": {"kind": "hlg", "lm": "words", "tune": {"lm_weight": [0.5, 1.0]}},
        "beam": {"kind": "beam", "lm": "words"},
    }
    config["tasks"]["asr"]["decoders"] = ["greedy", "hlg", "beam"]
    config["backends"] = {"scaled": {"kind": "temperature"}, "fused": {"kind": "fusion", "systems": ["full", "aware"]}}
    config["tasks"]["lid"]["backends"] = ["scaled", "fused"]
    factorise = {"layers": "ffn", "reduction": 0.2, "init": "activation", "allocate": True}
    config["methods"] |= {
        "student": {
            "adapt": "full",
            "factorise": factorise,
            "distil": {"teacher": "full", "untranscribed": {"corpus": "ocean", "split": "more"}},
        },
        "shrinking": {"adapt": "full", "factorise": factorise, "progressive": {"start": 1.0}},
    }
    config["systems"]["methods"] += ["student", "shrinking"]
    return config


def test_the_graph_is_that_of_the_rules(tmp_path, monkeypatch):
    tree, config = Tree(tmp_path), rich_config()
    tree.write(config)
    monkeypatch.chdir(tree.root)
    command = [sys.executable, "-m", "lowrank_speech.workflow.dry_run", "found.json", "--configfile", "config.yaml"]
    subprocess.run([*command, "--cores", "1"], env=environment(tree), check=True)
    found = json.loads(Path("found.json").read_text())["jobs"]
    schema = read_schema()
    experiment = Experiment(checked(config, schema), schema)
    mine = {job.manifest: job for job in jobs(experiment.slices, experiment.layout)}
    theirs = {path: one for one in found for path in one["output"] if path in mine}
    assert len(theirs) == len(mine) == len(found) - 1  # without `all`
    seen = set()
    for manifest, job in mine.items():
        seen |= set(job.needs)
        assert set(job.needs) <= seen <= set(mine) and job.manifest not in seen
        assert {path for path in theirs[manifest]["input"] if path in mine} == set(job.needs), job.what
        assert theirs[manifest]["rule"] == job.stage and theirs[manifest]["wildcards"] == dict(job.names)


# -- status and plan ---------------------------------------------------------------------------------------------------


def test_all_is_done(here, call):
    found = states(call)
    assert {one["state"] for one in found.values()} == {"done"} and len(found) == 26
    assert call("status", "mine.yaml")[1] == f"exp/tiny: {len(found)} of {len(found)} jobs done\n"
    assert call("plan", "mine.yaml")[1] == f"exp/tiny: nothing would run; all {len(found)} jobs are up to date\n"


def test_a_changed_setting(here, call):
    tree, config = here
    config = json.loads(json.dumps(config))
    config["methods"]["full"]["training"] = {"lr": 0.002}
    tree.write(config, "changed.yaml")
    found = states(call, "changed.yaml")
    waiting = {name: one["reason"] for name, one in found.items() if one["state"] == "waiting"}
    result = "wav2vec2/asr/full/greedy/test"
    assert waiting == {
        "train/wav2vec2/asr/full/train.json": "its settings changed",
        f"decode/{result}/decode.json": "waits for train wav2vec2/asr/full",
        f"score/{result}/score.json": f"waits for decode {result}",
        "report/report.json": "waits for train wav2vec2/asr/full and 2 more",
    }
    code, shown, _ = call("plan", "changed.yaml", "--json")
    planned = json.loads(shown)
    assert code == 0 and planned["counts"] == {"train": 1, "decode": 1, "score": 1, "report": 1}
    train = next(job for job in planned["jobs"] if job["stage"] == "train")
    assert train["changes"] == [{"key": "training.lr", "before": 0.001, "after": 0.002}]
    assert (train["reason"], train["names"]["method"]) == ("settings", "full")
    assert {job["reason"] for job in planned["jobs"] if job["stage"] != "train"} == {"inputs"}
    lines = cli_run_lines(planned)
    assert lines[0] == f"exp/tiny: 4 of {planned['total']} jobs would run: 1 train, 1 decode, 1 score, 1 report"
    assert "train wav2vec2/asr/full: its settings changed (training.lr 0.001 -> 0.002)" in lines
    assert f"decode {result}: its input is made again first (train)" in lines


def cli_run_lines(planned):
    """The text of a plan that ``--json`` printed."""
    from lowrank_speech.experiment.plan import Change, Plan, Planned, lines

    made = [Planned(**{**job, "changes": tuple(Change(**c) for c in job["changes"])}) for job in planned["jobs"]]
    return lines(Plan(planned["output"], tuple(made), planned["total"]))


def test_lost_files_and_new_systems(here, call):
    tree, config = here
    config = json.loads(json.dumps(config))
    config["systems"]["methods"].append("lowrank_lora")
    tree.write(config, "more.yaml")
    lost = tree.root / "exp/tiny/train/wav2vec2/asr/lowrank/set_aside.tsv"
    lost.rename(lost.with_suffix(".kept"))
    try:
        found = states(call, "more.yaml")
        planned = json.loads(call("plan", "more.yaml", "--json")[1])["jobs"]
    finally:
        lost.with_suffix(".kept").rename(lost)
    assert found["train/wav2vec2/asr/lowrank/train.json"]["reason"] == "set_aside.tsv is gone"
    assert found["train/wav2vec2/asr/lowrank_lora/train.json"]["reason"] == "not made yet"
    assert found["train/wav2vec2/asr/full/train.json"]["state"] == "done"
    reasons = {(job["stage"], job["names"].get("method")): (job["reason"], job["text"]) for job in planned}
    assert reasons["train", "lowrank"] == ("outputs", "set_aside.tsv is gone")
    assert reasons["train", "lowrank_lora"] == ("new", "not made yet")
    assert ("train", "full") not in reasons


def test_what_was_made_again_makes_what_depends_on_it_wait(here, call):
    root = here[0].root / "exp/tiny"
    manifest, before = root / "lang/chars/lang.json", (root / "lang/chars/lang.json").read_text()
    try:
        manifest.write_text(before)  # newer, but equal
        assert {one["state"] for one in states(call).values()} == {"done"}
        manifest.write_text(before.replace('"metrics": {}', '"metrics": {"x": 1}'))
        found = states(call)
    finally:
        manifest.write_text(before)
    assert found["base/wav2vec2/base.json"] | {"log": ""} == {
        "stage": "base",
        "names": {"base": "wav2vec2"},
        "state": "waiting",
        "reason": "lang chars was made again",
        "manifest": "exp/tiny/base/wav2vec2/base.json",
        "log": "",
        "line": None,
        "progress": None,
    }
    assert found["corpus/ocean/train.json"]["state"] == "done"


HELD = """
import sys, time
from pathlib import Path
from lowrank_speech.process import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_running_failed_and_stopped_jobs(here, call):
    root = here[0].root / "exp/tiny"
    manifest = root / "train/wav2vec2/asr/full/train.json"
    log, kept = root / "logs/train/wav2vec2/asr/full/train.log", manifest.with_suffix(".kept")
    before = log.read_text()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    lines = [
        "2024-01-01 00:00:00,000 INFO ==== stage train, code 0",
        "2024-01-01 00:00:00,000 ERROR of an earlier run",
        f"{stamp},000 INFO ==== stage train, code 1",
        f"{stamp},000 INFO 10 utterances, 20 s of speech, 30 steps in 3 epochs",
        f"{stamp},000 INFO epoch 1: loss 0.5000, dev loss 0.6000, dev error 0.2500",
        f"{stamp},000 INFO step 14 of 30, epoch 2, loss 0.420, 9 s of speech per second, 01:40 left",
    ]
    manifest.rename(kept)
    holder = subprocess.Popen(
        [sys.executable, "-c", HELD, str(manifest.with_name(".train.json.lock"))],
        stdout=subprocess.PIPE,
        env=environment(here[0]),
    )
    try:
        assert holder.stdout.readline() == b"locked\n"
        log.write_text("\n".join(lines) + "\n")
        running = states(call)["train/wav2vec2/asr/full/train.json"]
        text = call("status", "mine.yaml")[1]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        stopped = states(call)["train/wav2vec2/asr/full/train.json"]
        log.write_text("\n".join([*lines, f"{stamp},000 ERROR no.wav: it is missing; restore it"]) + "\n")
        failed = states(call)["train/wav2vec2/asr/full/train.json"]
        shown = call("status", "mine.yaml")[1]
        log.write_text("\n".join([*lines, "Traceback (most recent call last):", "  here", "KeyError: 1"]) + "\n")
        crashed = states(call)["train/wav2vec2/asr/full/train.json"]
    finally:
        holder.kill()
        log.write_text(before)
        kept.rename(manifest)
        manifest.with_name(".train.json.lock").unlink(missing_ok=True)
    assert running["state"] == "running" and running["reason"].startswith(f"process {holder.pid} on ")
    found = running["progress"]
    assert 90 < found.pop("seconds_left") <= 101
    assert found == {"epoch": 2, "epochs": 3, "step": 14, "steps": 30, "loss": 0.42, "dev_error": 0.25}
    assert "running: train wav2vec2/asr/full" in text
    assert "  epoch 2 of 3, step 14 of 30, loss 0.42, dev error 25.0 %, about 1 min" in text
    assert stopped["state"] == "waiting" and stopped["reason"].startswith("stopped before its end")
    assert (failed["state"], failed["line"]) == ("failed", "no.wav: it is missing; restore it")
    assert "failed: train wav2vec2/asr/full\n  no.wav: it is missing; restore it\n  log: exp/tiny/logs/" in shown
    assert (crashed["state"], crashed["line"]) == ("failed", "KeyError: 1")


def test_progress_of_short_trainings_is_that_of_their_epochs():
    lines = (
        "2024-01-01 00:00:00,000 INFO ==== stage train, code 1",
        "2024-01-01 00:00:10,000 INFO 10 utterances, 20 s of speech, 30 steps in 3 epochs",
        "2024-01-01 00:00:30,000 INFO epoch 1: loss -, dev loss 0.6000, dev error 0.2500",
    )
    now = time.mktime((2024, 1, 1, 0, 0, 35, 0, 0, -1))
    found = progress(Attempt(lines, now), now)
    assert (found.epoch, found.epochs, found.loss, found.dev_error) == (2, 3, None, 0.25)
    assert found.seconds_left == 35  # 20 s an epoch, 5 s of the second are over
    assert progress(Attempt(lines[:1], now), now) is None
    assert progress(Attempt(lines[:2], now), now).seconds_left is None
    assert last_attempt("no.log") is None


# -- run ---------------------------------------------------------------------------------------------------------------


def test_run_passes_arguments_and_its_exit_code(here, call, monkeypatch):
    seen = []

    def launch(*arguments):
        seen.append(arguments)
        return 3

    monkeypatch.setattr("lowrank_speech.workflow.launch.launch", launch)
    assert call("run", "mine.yaml", "--cores", "4", "-n", "--", "--until", "train")[0] == 3
    config, arguments, _ = seen[0]
    assert config == "mine.yaml" and arguments[:2] == ["--until", "train"]
    assert arguments[arguments.index("--snakefile") + 1] == str(REPOSITORY / "Snakefile")
    assert arguments[arguments.index("--workflow-profile") + 1] == str(REPOSITORY / "workflow/profiles/workstation")
    assert arguments[-3:] == ["--cores", "4", "--dry-run"]
    call("run", "mine.yaml", "--profile", "slurm")
    partitions = seen[1][1][seen[1][1].index("--slurm-partition-config") + 1]
    assert yaml.safe_load(Path(partitions).read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "no.yaml"), "the config file no.yaml does not exist; `lowrank-speech init` writes one"),
        (("status", "no.yaml"), "the config file no.yaml does not exist"),
        (("plan", "no.yaml"), "the config file no.yaml does not exist"),
        (("run", "mine.yaml", "--cores", "0"), "--cores is '0'; expected a number above 0, or all"),
        (("run", "mine.yaml", "--profile", "slum"), "neither a folder nor one of: slurm, workstation"),
        (("status", "mine.yaml", "--watch", "--json"), "leave out --json"),
        (("status", "typo.yaml"), "typo.yaml: methods.full: unknown key 'adapted'"),
        (("plan", "typo.yaml"), "typo.yaml: methods.full: unknown key 'adapted'"),
        (("status", "broken.yaml"), "broken.yaml is not valid YAML"),
    ],
)
def test_bad_input_is_one_line(here, call, words, message):
    tree, config = here
    config = json.loads(json.dumps(config))
    config["methods"]["full"] = {"adapted": "full"}
    tree.write(config, "typo.yaml")
    (tree.root / "broken.yaml").write_text("a: [1\n")
    code, shown, error = call(*words)
    assert (code, shown) == (2, "") and message in error and len(error.splitlines()) == 1, error


def test_without_the_workflow_the_command_says_so(here, call, monkeypatch, tmp_path):
    monkeypatch.setattr(experiments, "PROJECT", tmp_path)
    for command in ("run", "status", "plan"):
        code, _, error = call(command, "mine.yaml")
        assert code == 2 and "was installed without the workflow" in error and len(error.splitlines()) == 1
