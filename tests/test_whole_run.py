"""A complete run from synthesised speech to the table with real stages; then nothing to do; then one edit."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from closures import outside_of_their_hash
from workflow_config import sliced
from workflow_tree import REPOSITORY

CONFIG = REPOSITORY / "tests/configs/tiny.yaml"


def snakemake(
    folder: Path, config: Path, *options: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "2"]
    return subprocess.run(
        [*command, "--directory", str(folder), "--configfile", str(config), *options],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_whole_run_gives_the_table_and_runs_again_what_changed(tmp_path):
    traces = tmp_path / "traces"
    traces.mkdir()
    traced = {"PYTHONPATH": str(REPOSITORY / "tests/tracing"), "TRACES": str(traces)}
    first = snakemake(tmp_path, CONFIG, environment=traced)
    assert first.returncode == 0, first.stdout[-4000:]
    # No job ran code outside of its hash: with other code it would not have run again.
    assert outside_of_their_hash(sliced(yaml.safe_load(CONFIG.read_text(encoding="utf-8"))), traces) == {}
    report = tmp_path / "exp/tiny/report"
    with (report / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {(row["task"], row["base"], row["method"]) for row in rows}
    assert found == {(t, b, m) for t in ("asr", "lid") for b in ("wav2vec2", "whisper") for m in ("lowrank", "lora")}
    for row in rows:
        assert float(row["cer" if row["type"] == "asr" else "accuracy"]) >= 0
        record = json.loads(
            (tmp_path / f"exp/tiny/train/{row['base']}/{row['task']}/{row['method']}/train.json").read_text()
        )
        numbers = record["metrics"]
        assert 0 < numbers["parameters_trained"] < numbers["parameters_total"]
        assert (numbers["parameters_total"] < numbers["parameters_dense"]) == (row["method"] == "lowrank")
    assert "lowrank" in (report / "results.txt").read_text(encoding="utf-8")

    assert "Nothing to be done" in snakemake(tmp_path, CONFIG).stdout

    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["score"]["bootstrap"] = 60
    edited = tmp_path / "edited.yaml"
    edited.write_text(yaml.safe_dump(config), encoding="utf-8")
    again = snakemake(tmp_path, edited)
    assert again.returncode == 0, again.stdout[-4000:]
    ran = {line.split()[1].rstrip(":") for line in again.stdout.splitlines() if line.startswith(("localrule", "rule"))}
    assert ran == {"score", "report", "all"}
