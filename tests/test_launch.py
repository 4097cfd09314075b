"""``make run``: the lock, remains of a killed run, dry runs, and the final output."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowrank_speech.workflow.launch import DRY, _is_snakemake, main
from lowrank_speech.workflow.paths import Layout
from lowrank_speech.workflow.results import errors
from workflow_tree import Tree, tiny_config

PROFILE = ("--cores", "2", "--workflow-profile", "workflow/profiles/workstation")
SLOW = 'import sys, time\nif "lowrank_speech.stages.lang" in sys.argv:\n    time.sleep(120)\n'


def launched(tree: Tree, *arguments: str, config: str = "config.yaml", wait: bool = True):
    environment = os.environ | {"PYTHONPATH": str(tree.root / "src"), "LOWRANK_SPEECH_BIN": str(tree.root / "bin")}
    command = [sys.executable, "-m", "lowrank_speech.workflow.launch", config, *arguments]
    options = {"cwd": tree.root, "env": environment, "text": True, "start_new_session": True}
    if wait:
        return subprocess.run(command, **options, capture_output=True)
    return subprocess.Popen(command, **options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def waiting_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tree in which everything has run; its results.txt is the stub's."""
    tree = Tree(tmp_path_factory.mktemp("launch"), tiny_config())
    done = launched(tree, *PROFILE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nstub\n\nexp/tiny/report/report.html\n")
    return tree


def test_a_dry_run_shows_no_table(tree):
    for options in (["-n"], ["--dry-run"], ["-np"], ["--dryrun", "--quiet"]):
        done = launched(tree, *options, *PROFILE)
        assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr
        assert "report.html" not in done.stdout


@pytest.mark.parametrize(
    "word", ["-np", "-pn", "-nq", "--dry", "-l", "--list-rules", "--delete-all-output", "-S", "-Fn"]
)
def test_options_with_which_no_job_runs(word):
    assert DRY.fullmatch(word)


@pytest.mark.parametrize(
    "word",
    ["-p", "-j4", "-R", "train", "--cores", "all", "-F", "-k", "--until", "-Rtrain", "-c2", "--rerun-incomplete"],
)
def test_options_with_which_jobs_run(word):
    assert not DRY.fullmatch(word)


def test_a_run_of_a_part_does_not_show_the_table_of_before(tree):
    for options in (["--until", "corpus"], ["exp/tiny/score/whisper/lid/full/scores/test/score.json"]):
        done = launched(tree, *options, *PROFILE)
        assert done.returncode == 0 and "report.html" not in done.stdout
    assert "report.html" in launched(tree, "exp/tiny/report/report.json", "-R", "report", *PROFILE).stdout


def test_nothing_to_do_shows_the_table(tree):
    assert launched(tree, *PROFILE).stdout.endswith("\nstub\n\nexp/tiny/report/report.html\n")


def test_a_config_that_is_not_there_is_one_line(tree):
    done = launched(tree, *PROFILE, config="mine.yaml")
    assert done.returncode == 2
    assert done.stderr == "make run: the config file mine.yaml does not exist; name one with CONFIG=\n"


def test_the_lock_of_a_killed_snakemake_is_removed(tree):
    locks = tree.root / ".snakemake" / "locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.output.lock").write_text("exp/tiny/report/report.json\n")
    done = launched(tree, *PROFILE)
    assert done.returncode == 0 and "the last run was killed; removing the lock that it left" in done.stderr
    assert not list(locks.glob("*"))


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused_and_a_killed_one_lets_go(tmp_path):
    tree = Tree(tmp_path, tiny_config())
    stub = tree.root / "stub.py"
    text = stub.read_text()
    stub.write_text(SLOW + text)
    first = launched(tree, *PROFILE, wait=False)
    waiting_for(lambda: list((tree.root / ".snakemake").glob("locks/*")))
    second = launched(tree, *PROFILE)
    assert second.returncode == 2
    assert second.stderr.startswith(f"make run: process {first.pid} is working in {tree.root}; wait until it ends")
    os.killpg(first.pid, signal.SIGKILL)  # the program, its Snakemake and all jobs
    first.communicate()
    stub.write_text(text)
    third = launched(tree, *PROFILE)
    assert third.returncode == 0, third.stderr
    assert "the last run was killed" in third.stderr


@pytest.mark.slow
def test_a_snakemake_that_still_runs_keeps_its_lock(tmp_path):
    """``make run`` itself was killed, and its Snakemake was not."""
    tree = Tree(tmp_path, tiny_config())
    (tree.root / "stub.py").write_text(SLOW + (tree.root / "stub.py").read_text())
    first = launched(tree, *PROFILE, wait=False)
    waiting_for(lambda: list((tree.root / ".snakemake").glob("locks/*")))
    try:
        first.kill()
        first.wait()
        second = launched(tree, *PROFILE)
        assert second.returncode == 2 and "make run: Snakemake (process " in second.stderr
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.stdout.close()


@pytest.mark.slow
def test_the_last_line_is_the_error_and_it_is_there_once(tmp_path):
    tree = Tree(tmp_path, tiny_config())
    stub = tree.root / "stub.py"
    said = "text, line 3: utterance x17 has no words; correct it"
    stub.write_text(
        'import sys\nif "lowrank_speech.stages.train" in sys.argv and "whisper/asr/full" in " ".join(sys.argv):\n'
        f'    print("2026-11-27 20:00:00,000 ERROR {said}", file=sys.stderr)\n    sys.exit(2)\n' + stub.read_text()
    )
    done = launched(tree, *PROFILE)
    assert done.returncode == 1
    log = "exp/tiny/logs/train/whisper/asr/full/train.log"
    assert done.stderr.splitlines()[-1] == f"error: {said} (log: {log})"
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == done.stderr.splitlines()[-1:]
    # Nothing was tried again.
    assert (tree.root / log).read_text().count(said) == 1


@pytest.mark.parametrize(
    ("command", "is_one"),
    [
        ("/x/bin/snakemake --cores 1", True),
        ("/x/bin/python3.11 /x/bin/snakemake -n", True),
        ("python -m snakemake", True),
        ("python -u -m snakemake --cores 1", True),
        ("grep -r snakemake .", False),
        ("python notes.py snakemake", False),
        ("", False),
    ],
)
def test_what_is_a_snakemake(command, is_one):
    assert _is_snakemake(command.split(" ")) == is_one


ATTEMPT = "2026-11-27 20:00:00,000 INFO ==== stage train, code 0123\n"
ERROR = "2026-11-27 20:00:01,000 ERROR no room\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ATTEMPT + "2026-11-27 20:00:01,000 INFO done\n", []),
        (ATTEMPT + ERROR, ["no room"]),
        (ATTEMPT + ERROR + ATTEMPT + "2026-11-27 20:00:02,000 INFO done\n", []),
        (ATTEMPT + 'Traceback (most recent call last):\n  File "x"\nKeyError: 7\n', ["KeyError: 7"]),
        ("", []),
    ],
)
def test_errors_are_those_of_the_last_attempt(tmp_path: Path, text, said):
    folder = tmp_path / "logs" / "train" / "a"
    folder.mkdir(parents=True)
    (folder / "train.log").write_text(text)
    assert errors(Layout(str(tmp_path)), 0.0) == [f"error: {line} (log: {folder / 'train.log'})" for line in said]
    assert errors(Layout(str(tmp_path)), time.time() + 60) == []


def test_a_signal_to_the_whole_group_comes_twice_and_apart(tmp_path):
    """Snakemake ends on the first; a second one during its handler would hang it."""
    told = tmp_path / "times"
    program = (
        "import signal, sys, time\n"
        f"note = lambda *_: open({str(told)!r}, 'a').write(f'{{time.monotonic()}}\\n')\n"
        "signal.signal(signal.SIGTERM, note)\n"
        "note()\n"
        "while len(open(sys.argv[1]).readlines()) < 3: time.sleep(0.05)\n"
    )
    launch = "import sys; from lowrank_speech.workflow.launch import _run; sys.exit(_run(sys.argv[1:]))"
    command = [sys.executable, "-c", launch, sys.executable, "-c", program, str(told)]
    running = subprocess.Popen(command, start_new_session=True)
    waiting_for(told.exists)
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait(60) == 0
    _, first, second = map(float, told.read_text().split())
    assert second - first > 0.3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no keys at the top level; write some"),
        (b"text\n", "has no keys at the top level; write some"),
        (b"\xff\xfe", "byte 0 is not UTF-8; convert the file"),
        (b"a: [1\n", "is not valid YAML: "),
        (b"a: 1\na: 2\n", "the key a occurs twice; remove one"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_line(content, message, tmp_path, capsys):
    (tmp_path / "bad.yaml").write_bytes(content)
    assert main([str(tmp_path / "bad.yaml"), "--cores", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"make run: {tmp_path}/bad.yaml") and message in said and said.count("\n") == 1
