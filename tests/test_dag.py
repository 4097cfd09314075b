"""The workflow graph: the jobs of every experiment, command lines that the stages accept, lint, profiles."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from lowrank_speech.corpora import registry
from lowrank_speech.settings import read
from lowrank_speech.stages import common
from lowrank_speech.workflow import results as shown
from lowrank_speech.workflow.config import (
    System,
    backend_decoder,
    calibrated,
    calibrated_results,
    complete,
    factorise_key,
    fused,
    results,
    splits_used,
    start_share,
    systems,
)
from workflow_config import SCHEMA
from workflow_tree import REPOSITORY, Tree, tiny_config

CONFIGS = ["config.yaml", *(f"workflow/experiments/{p.name}" for p in (REPOSITORY / "workflow/experiments").iterdir())]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree in which nothing has run; without data."""
    return Tree(tmp_path_factory.mktemp("dag"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONFIGS, "tests/configs/tiny.yaml"])
def test_an_experiment_has_its_jobs_and_stages_take_their_command_lines(tree, name):
    config = complete(yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8")))
    grid = systems(config)
    factorised = {
        (s.base, factorise_key((method := config["methods"][s.method])["factorise"], start_share(method)))
        for s in grid
        if "factorise" in config["methods"][s.method]
    }
    due, commands = tree.planned("--configfile", str(REPOSITORY / name))
    assert due["train"] == len(grid)
    applied = calibrated_results(config)
    # Back ends are trained on what their systems' decoders make of dev.
    dev = {
        (*s, backend_decoder(config, one.task, one.decoder))
        for one in applied
        for s in fused(config, System(*one[:3]), one.decoder)
    }
    assert due["decode"] == len(results(config, SCHEMA)) + len(dev)
    assert due["score"] == len(results(config, SCHEMA)) + len(applied) and due.get("apply", 0) == len(applied)
    assert due["corpus"] == len(splits_used(config)) and due["overlap"] == len(config["systems"]["tasks"])
    assert due.get("factorise", 0) == len(factorised)
    assert due["base"] == len(config["systems"]["bases"])
    assert ("calibrate" in due) == any(calibrated(config["methods"][s.method]) for s in grid)
    assert due["report"] == 1
    assert {read_command(command) for command in commands} == due.keys()


def test_a_config_without_corpora_is_laid_over_the_default(tree):
    tree.write({"output": "exp/other", "systems": {"methods": ["full"]}}, "over.yaml")
    assert tree.due("--configfile", "over.yaml")["train"] == 4


def test_a_typo_ends_in_one_line_that_names_it(tree):
    config = tiny_config()
    config["methods"]["full"]["training"] = {"lrr": 1}
    tree.write(config, "typo.yaml")
    done = tree.snakemake("--dry-run", "--configfile", "typo.yaml")
    assert done.returncode != 0
    last = done.stdout.splitlines()[-1]  # the error stands last, in one line
    assert last.startswith(
        "error in the config: methods.full.training: unknown key 'lrr' (did you mean 'lr'?); known keys: "
    )
    assert "Traceback" not in done.stdout


def test_unknown_names_are_no_targets(tree):
    done = tree.snakemake("--dry-run", "exp/default/score/wav2vec2/asr/nothing/greedy/test/score.json")
    assert done.returncode != 0
    assert "MissingRuleException" in done.stdout


def test_gpu_is_asked_for_where_the_config_says_cuda(tree):
    config = tiny_config()
    config["methods"]["full"]["training"] = {"device": "cuda"}
    tree.write(config, "gpu.yaml")
    targets = [f"exp/tiny/train/whisper/lid/{method}/train.json" for method in ("full", "lowrank")]
    text = tree.snakemake(*targets, "--dry-run", "--configfile", "gpu.yaml").stdout
    resources = dict(re.findall(r"method=(\w+)\s+resources: (.*)", text))
    assert "gpu=1" in resources["full"] and "gpu=0" in resources["lowrank"]


# What Snakemake asks conda before it lists environments.
CONDA = """#!/bin/sh
case "$1" in
  --version) echo conda 25.1.0 ;;
  info) echo '{"conda_prefix": "/opt/conda", "platform": "linux-64"}' ;;
  config) echo '{"get": {"channel_priority": "strict"}}' ;;
esac
"""


@pytest.mark.parametrize(("rule", "section"), [("train", "training"), ("base", "pretrain")])
def test_the_environment_with_k2_is_taken_where_the_config_asks_for_k2(rule, section, tmp_path):
    tree, config = Tree(tmp_path), tiny_config()
    conda = tmp_path / "bin" / "conda"
    conda.write_text(CONDA, encoding="utf-8")
    conda.chmod(0o755)
    owner = config if rule == "train" else config["bases"]["whisper"]
    found = []
    for backend in ("auto", "k2"):
        owner[section] = {**owner[section], "ctc": {"backend": backend}}
        tree.write(config)
        done = tree.snakemake("--list-conda-envs", "--sdm", "conda")
        assert done.returncode == 0, done.stdout
        found.append(set(re.findall(r"^envs/(\w+)\.yaml", done.stdout, flags=re.MULTILINE)))
    assert found == [{"data", "report", "torch"}, {"data", "report", "torch", "k2"}]


def read_command(command: str) -> str:
    """Parse a rule's command with the stage's own parser and config class; the stage's name."""
    words = shlex.split(re.split(" >>? ", command)[0])
    # Those that can go on after a signal get it themselves, not a shell around them, and add to their log.
    assert (words[0] == "exec") == ("--scratch" in words) == (" >> " in command)
    words = words[words[0] == "exec" :]
    assert words[:2] == ["python", "-m"]
    stage = importlib.import_module(words[2])
    runtime = getattr(stage, "Runtime", common.NoRuntime)
    parser = common.parser(words[2], None, stage.Config, runtime)
    stage.add(parser)
    arguments = parser.parse_args(words[3:])
    cfg = common.read_cfg(arguments.cfg)
    read(stage.Config, cfg)
    read(runtime, common.read_cfg(arguments.runtime))
    if words[2].endswith(".corpus"):
        registry.read(cfg["corpus"], "corpus")
    return words[2].rpartition(".")[2]


@pytest.mark.slow
def test_export_is_made_where_it_is_asked_for(tree):
    pytest.importorskip("lowrank_speech.stages.export")
    commands = tree.commands("exp/default/export/whisper/asr/lowrank/dense/export.json")
    assert [read_command(command) for command in commands].count("export") == 1


@pytest.mark.slow
def test_lint_is_clean(tree):
    done = tree.snakemake("--lint")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_report_of_snakemake_has_the_captions(tmp_path: Path):
    tree = Tree(tmp_path, tiny_config())
    tree.run()
    done = tree.snakemake("--report", "page.html")
    assert done.returncode == 0, done.stdout
    assert "bootstrap interval" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["workstation", "slurm"])
def test_snakemake_reads_the_profiles(tree, name):
    if name == "slurm":
        pytest.importorskip("snakemake_executor_plugin_slurm")
    assert tree.due("--workflow-profile", f"workflow/profiles/{name}")["report"] == 1


def test_slurm_partition_with_gpus_is_for_jobs_that_ask_for_one():
    partitions = pytest.importorskip("snakemake_executor_plugin_slurm.partitions")
    found = partitions.read_partition_file(REPOSITORY / "workflow/profiles/slurm/partitions.yaml")

    def best(**resources: int) -> str:
        job = SimpleNamespace(resources={"mem_mb": 4000, "runtime": 60, **resources}, threads=1)
        scores = {partition.name: partition.score_job_fit(job) for partition in found}
        return max((name for name, score in scores.items() if score is not None), key=scores.get)

    assert best(gpu=1) == "gpu"
    assert best(gpu=0) == best() == "cpu"


@pytest.mark.slow
def test_failed_stage_leaves_the_other_systems_and_shows_its_log(tmp_path: Path):
    tree = Tree(tmp_path, tiny_config())
    stub = tmp_path / "stub.py"
    stub.write_text(
        'import sys\nif "lowrank_speech.stages.train" in sys.argv and "whisper/asr/full" in " ".join(sys.argv):\n'
        '    sys.exit("utterance x17: no such file")\n' + stub.read_text()
    )
    done = tree.snakemake("--cores", "2", "--workflow-profile", "workflow/profiles/workstation")
    assert done.returncode != 0
    assert "utterance x17: no such file" in done.stdout
    scores = {str(path.parent.relative_to(tmp_path / "exp/tiny/score")) for path in tmp_path.rglob("score.json")}
    assert len(scores) == 15 and "whisper/asr/full/greedy/test" not in scores


def test_paths_with_blanks_are_quoted(tmp_path: Path):
    root = tmp_path / "a folder"
    root.mkdir()
    tree = Tree(root, tiny_config())
    tree.run("exp/tiny/corpus/babel/dev.json")
    assert (root / "exp/tiny/corpus/babel/dev.json").is_file()


def test_snakemake_may_run_in_another_folder(tree, tmp_path: Path):
    """The config of the project is found; results go to the folder where it runs."""
    command = [sys.executable, "-m", "snakemake", "-s", str(tree.root / "Snakefile"), "--dry-run"]
    for options in ([], ["--workflow-profile", str(tree.root / "workflow/profiles/workstation")]):
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and "report" in done.stdout, done.stderr


def test_table_is_shown_with_the_place_of_the_report(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("corpora: {}\noutput: exp/a\n")
    (tmp_path / "over.yaml").write_text("output: exp/b\n")
    assert shown.main(["config.yaml"]) == 0 and capsys.readouterr().out == ""
    for name in "ab":
        (tmp_path / f"exp/{name}/report").mkdir(parents=True)
        (tmp_path / f"exp/{name}/report/results.txt").write_text(f"table {name}\n")
    shown.main(["config.yaml"])
    assert capsys.readouterr().out == "\ntable a\n\nexp/a/report/report.html\n"
    shown.main(["over.yaml"])
    assert "table b" in capsys.readouterr().out


def test_data_that_are_not_there_are_missed_before_the_first_job(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("SPEECH_DATA", raising=False)
    tree, config = Tree(tmp_path), tiny_config()
    config["corpora"]["ocean"]["path"] = "data/oceam"
    tree.write(config)
    done = tree.snakemake("--dry-run")
    assert done.returncode != 0 and "in the config: corpora.ocean: " in done.stdout and "data/oceam" in done.stdout
    config["corpora"]["ocean"]["path"] = None  # below $SPEECH_DATA, which may be known elsewhere only
    tree.write(config)
    assert tree.due()["corpus"] == 7
    done = tree.snakemake("--cores", "1")
    assert done.returncode != 0 and "corpora.ocean: " in done.stdout and "SPEECH_DATA" in done.stdout
    assert tree.made() == [] and "Traceback" not in done.stdout


def test_a_key_that_occurs_twice_in_the_config_is_refused(tree):
    text = (REPOSITORY / "config.yaml").read_text(encoding="utf-8")
    lines = [i for i, line in enumerate(text.splitlines(), 1) if line.startswith("seed:")]
    (tree.root / "twice.yaml").write_text(f"{text}\nseed: 2\n", encoding="utf-8")
    done = tree.snakemake("--dry-run", "--configfile", "twice.yaml")
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert f"twice.yaml, lines {lines[0]} and {len(text.splitlines()) + 2}: the key seed occurs twice" in done.stdout
