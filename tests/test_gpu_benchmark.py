"""The bookkeeping of benchmarks/gpu.py: pieces, budget, resumption, tables. Its measurements are not run here."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
sys.path.insert(0, str(FOLDER))
import gpu  # noqa: E402
import gpu_pieces  # noqa: E402
import gpu_tables  # noqa: E402

OK = "import json, sys; open(sys.argv[1], 'w').write(json.dumps({'row': 'a', 's/s': 2.5}) + chr(10)); print('fine')"


def piece(name, code=OK, seconds=1.0, kind="training", **keys):
    return gpu_pieces.Piece(
        name, kind, f"Title {name}", seconds, lambda rows: [sys.executable, "-c", code, str(rows)], cuda=False, **keys
    )


def call(out, *pieces, minutes=9.0, retry=False, clock=time.time, started=None):
    started = time.time() if started is None else started
    arguments = SimpleNamespace(out=out, minutes=minutes, retry=retry, rehearse=False, started=started)
    return gpu.run(arguments, pieces, clock)


def record(out, name):
    return json.loads((out / f"{name}.json").read_text())


def test_a_second_call_runs_only_what_is_missing(tmp_path, capsys):
    assert call(tmp_path, piece("one")) == 0
    first = record(tmp_path, "one")
    assert first["status"] == "done" and first["rows"] == [{"row": "a", "s/s": 2.5}] and first["torch"]
    assert (tmp_path / "one.log").read_text() == "fine\n"
    capsys.readouterr()
    assert call(tmp_path, piece("one", "raise SystemExit(9)"), piece("two")) == 0
    assert record(tmp_path, "one") == first and record(tmp_path, "two")["status"] == "done"
    assert "one:" not in capsys.readouterr().out


def test_a_failure_is_recorded_and_stops_nothing(tmp_path):
    broken = piece("broken", "print('loading'); raise ValueError('no such | shape')")
    assert call(tmp_path, broken, piece("next")) == 0
    found = record(tmp_path, "broken")
    assert found["status"] == "failed" and found["error"] == "exit code 1: ValueError: no such | shape"
    assert record(tmp_path, "next")["status"] == "done"
    call(tmp_path, piece("broken"))
    assert record(tmp_path, "broken") == found
    call(tmp_path, piece("broken"), retry=True)
    assert record(tmp_path, "broken")["status"] == "done"


def test_a_benchmark_without_rows_fails(tmp_path):
    call(tmp_path, piece("empty", "print('nothing')"))
    assert record(tmp_path, "empty")["status"] == "failed" and "No such file" in record(tmp_path, "empty")["error"]


def test_a_piece_that_does_not_fit_waits_and_a_shorter_one_runs(tmp_path, capsys):
    long, short = piece("long", seconds=300), piece("short", seconds=60)
    late = time.time() - 60 * 6  # six of nine minutes are over
    assert call(tmp_path, long, short, started=late) == 1
    assert not (tmp_path / "long.json").exists() and record(tmp_path, "short")["status"] == "done"
    assert "long: waits for the next call (300 s estimated, 150 s left)" in capsys.readouterr().out
    assert call(tmp_path, long, short) == 0
    # One that never fits an hour of nine minutes still gets the whole of a call.
    assert call(tmp_path, piece("longest", seconds=3600)) == 0


def test_time_that_runs_out_is_not_lost_once_but_twice(tmp_path):
    slow = "import subprocess, sys, time; subprocess.Popen(['sleep', '987.5']); time.sleep(60)"
    minutes = (gpu.SPARE + 1.5) / 60
    assert call(tmp_path, piece("slow", slow, seconds=0.1), minutes=minutes) == 1
    assert record(tmp_path, "slow")["status"] == "begun"
    assert ended("987.5")
    assert call(tmp_path, piece("slow", slow, seconds=0.1), minutes=minutes) == 0
    assert record(tmp_path, "slow")["error"].startswith("took longer than ")
    for _ in range(3):  # the grid goes on where it stopped, in any number of calls
        assert call(tmp_path, piece("grid", slow, seconds=0.1, kind="grid"), minutes=minutes) == 1
    assert record(tmp_path, "grid")["spent"] > 3


def ended(word):
    """Whether all processes with ``word`` in their command end: a process that was just killed may still be listed."""
    end = time.monotonic() + 10
    while running(word) and time.monotonic() < end:
        time.sleep(0.05)
    return not running(word)


def running(word):
    """Ids of processes with ``word`` in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:  # it has ended
            continue
    return found


def test_a_call_that_is_killed_loses_only_its_piece(tmp_path):
    code = f"""if True:
        import sys; sys.path[:0] = [{str(FOLDER)!r}, {str(REPOSITORY / "tests")!r}]
        from pathlib import Path
        from test_gpu_benchmark import OK, call, piece
        slow = "import subprocess as s; s.Popen(['sleep', '988.5']); print('begun', flush=True); s.run(['sleep', '60'])"
        call(Path({str(tmp_path)!r}), piece("one"), piece("two", slow), piece("three"))"""
    process = subprocess.Popen([sys.executable, "-c", code])
    log, end = tmp_path / "two.log", time.monotonic() + 60
    while not (log.is_file() and log.read_text()):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    with pytest.raises(gpu.ProblemError, match="another call works there"):
        call(tmp_path, piece("two"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM and ended("988.5")
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["one.json"]
    assert call(tmp_path, piece("one", "raise SystemExit(9)"), piece("two"), piece("three")) == 0
    assert [record(tmp_path, name)["status"] for name in ("one", "two", "three")] == ["done"] * 3


def test_what_is_lacking_is_named_and_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SPEECH_MODELS", raising=False)
    lacking = piece("grid", modules=("json", "no_such_package"), variables=("SPEECH_MODELS",), files=("no.yaml",))
    assert call(tmp_path, lacking, piece("next")) == 1
    assert "grid: needs no_such_package, $SPEECH_MODELS (a folder), no.yaml" in capsys.readouterr().out
    assert record(tmp_path, "grid")["status"] == "needs"
    monkeypatch.setenv("SPEECH_MODELS", str(tmp_path))
    assert call(tmp_path, piece("grid", variables=("SPEECH_MODELS",))) == 0
    assert record(tmp_path, "grid")["status"] == "done"


def test_a_folder_is_for_measurements_or_for_a_rehearsal(tmp_path, capsys):
    call(tmp_path, piece("one"))
    assert gpu.main(["run", "--rehearse", str(tmp_path)]) == 2
    assert "has results of a measurement, this is a rehearsal; give another folder" in capsys.readouterr().err
    (tmp_path / "one.json").write_text("{")
    with pytest.raises(gpu.ProblemError, match=r"one\.json: not JSON .*; remove it"):
        call(tmp_path, piece("one"))
    assert gpu.main(["run", str(tmp_path), "--only", "speed"]) == 2
    assert "--only speed: no such piece; expected one of: tests, training-" in capsys.readouterr().err


def test_tables_have_the_measured_rows_and_say_which_are_not(tmp_path):
    broken = piece("broken", "raise ValueError('<b>|')", expected=("x",))
    chosen = [piece("one", expected=("a", "b")), broken, piece("none", expected=("c",)), piece("grid", kind="grid")]
    call(tmp_path, *chosen[:2])
    text = gpu_tables.tables(chosen, {p.name: gpu.read(tmp_path, p) for p in chosen}, False)
    assert "| row | s of speech / s |\n|---|---|\n| a | 2.50 |\n| b | no GPU yet |" in text
    assert "Failed: exit code 1: ValueError: &lt;b>\\|" in text
    assert text.count("## Title") == 4 and text.rstrip().endswith("## Title grid\n\nno GPU yet")
    (row,) = [line for line in text.splitlines() if line.startswith("| c |")]
    assert set(row.split(" | ")[1:-1]) == {"no GPU yet"}


def test_the_tables_of_a_rehearsal_do_not_become_the_results(tmp_path, capsys):
    (tmp_path / "mode").write_text("rehearsal\n")
    before = gpu.RESULTS.read_text()
    assert gpu.main(["tables", str(tmp_path)]) == 2
    assert "has a rehearsal, which is not a result; give --to FILE" in capsys.readouterr().err
    assert gpu.main(["tables", str(tmp_path), "--to", str(tmp_path / "out.md")]) == 0
    assert (tmp_path / "out.md").read_text().startswith("# A rehearsal on a CPU") and gpu.RESULTS.read_text() == before


def test_all_pieces_can_run_and_have_a_section_in_the_results(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import bench_memory
    import bench_trainer

    text = gpu.RESULTS.read_text()
    for rehearse in (False, True):
        chosen = gpu_pieces.pieces(rehearse, tmp_path)
        assert len({p.name for p in chosen}) == len(chosen)
        for p in chosen:
            assert p.seconds <= 60 * gpu.MINUTES - gpu.SPARE
            assert p.kind == "grid" or f"## {p.title}\n" in text
            if p.kind in ("training", "memory", "constraint", "inference"):
                command = p.command(tmp_path / "rows")
                assert Path(command[1]).is_file() and command[-2:] == ["--json", str(tmp_path / "rows")]
            if p.kind == "training":
                preset = command[command.index("--preset") + 1]
                assert set(p.expected) <= set(bench_trainer.rows_for(preset))
            if p.kind == "memory":
                assert set(p.expected) <= set(bench_memory.VARIANTS)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("noise\n1 failed, 2 passed, 3 skipped, 90 deselected in 20.51s\n", (2, 1, 3)),
        ("==== 2 skipped, 31 deselected in 8.0s ====\n", (0, 0, 2)),
    ],
)
def test_the_summary_of_pytest(text, counts):
    assert gpu_pieces.counted(Path("none"), text) == [dict(zip(("passed", "failed", "skipped"), counts, strict=True))]
    with pytest.raises(ValueError, match="no summary"):
        gpu_pieces.counted(Path("none"), "INTERNALERROR\n")


def test_missing_requirements(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name in ("peft", "lhotse"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    before = gpu.missing()
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert {line.split(">")[0] for line in set(gpu.missing()) - set(before)} == {"peft", "lhotse"}
    assert any(line.startswith("torch==") for line in gpu.installed())


@pytest.mark.slow
def test_the_script_says_what_is_missing_where_no_index_answers(tmp_path):
    """The real script with a Python that has no package, and an index that refuses connections."""
    copy = tmp_path / "copy"
    (copy / "benchmarks").mkdir(parents=True)
    for path in [*FOLDER.glob("gpu*"), REPOSITORY / "pyproject.toml"]:
        (copy / "benchmarks" / path.name if path.parent == FOLDER else copy / path.name).write_bytes(path.read_bytes())
    (copy / "benchmarks" / "gpu.sh").chmod(0o755)
    (copy / "tests").mkdir()
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    environment = {"PATH": os.environ["PATH"], "PYTHON": f"{bare}/bin/python", "PIP_INDEX_URL": "http://127.0.0.1:9/"}
    done = subprocess.run(
        [copy / "benchmarks" / "gpu.sh", tmp_path / "out"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "not installed: torch>=2.8, " in done.stdout and "could not install all of them" in done.stderr
    assert "memory: needs torch, transformers, lhotse" in done.stdout and "0 of 16 pieces finished" in done.stdout
