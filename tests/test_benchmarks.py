"""The benchmarks of the trainer and of inference run, on the smallest models, and their tables have sane rows.

Their rows run in this process, but for one: as processes of their own each would import everything again.
"""

import json
import sys
from types import SimpleNamespace

import pytest

from conftest import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a benchmark of some name with some options; the rows that it wrote."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delenv("SPEECH_DATA", raising=False)

    def run(name, child, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--json", str(tmp_path / "rows"), "--device", "cpu", *options])
        if child is not None:
            import speech

            def here(_, what, arguments):
                return child(SimpleNamespace(**vars(arguments) | what))

            monkeypatch.setattr(speech, "own_process", here)
        __import__(name).main()
        return [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]

    return run


TINY = ("--preset", "tiny", "--utterances", "8", "--batch", "4", "--rounds", "2")


@pytest.mark.slow
def test_every_row_of_the_trainer_benchmark(run):
    def child(a):
        import bench_trainer

        return bench_trainer.measure(a) if a.row else bench_trainer.agreement(a)

    rows = run("bench_trainer", child, *TINY)
    full, lora = ([row for row in rows if row["benchmark"] == f"trainer, {method}"] for method in ("full", "lora"))
    assert [row["row"] for row in full] == [row["row"] for row in lora if "bf16" not in row["row"]][:-1]
    assert len(lora) == 10
    for row in rows:
        assert row["s/s"] > 0 and row["MB"] > 100 and 0 <= row["padding %"] < 100 and row["updates"] == 2
        assert row["x speed"] > 0 and row["x MB, by length"] > 0
    for first in (full[0], lora[0]):
        assert first["row"] == "trainer" and first["x speed"] == first["x MB"] == 1


@pytest.mark.slow
def test_a_row_of_the_trainer_benchmark_in_its_own_process(run, capsys):
    (row,) = run("bench_trainer", None, *TINY[:-2], "--methods", "lora", "--rows", "and both")
    assert row["s/s"] > 0 and row["x speed"] is None
    assert "loss and gradient norm of one batch agree" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "options"), [("xls-r-300m", ["--stored"]), ("whisper-tiny", ["--tokens", "3"])])
def test_inference(run, preset, options):
    def child(a):
        import bench_inference

        return bench_inference.memory(a)

    rows = run("bench_inference", child, "--preset", preset, "--layers", "1", "--utterances", "3", *options)
    assert [(row["model"], row["batch"]) for row in rows] == [
        (model, batch) for batch in ("one by one", "by duration") for model in ("dense", "low rank")
    ]
    for dense, low in (rows[:2], rows[2:]):
        assert dense["x speed"] == dense["x weights"] == 1 and low["x weights"] < 1
        assert low["weights MB"] == pytest.approx(4 * low["parameters M"], rel=0.01)
        assert min(dense["s/s"], low["s/s"]) > 0
