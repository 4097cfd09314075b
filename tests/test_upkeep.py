"""The commands verify and clean, on an experiment whose artefacts are files of a few bytes with real manifests."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lowrank_speech.artefact import Manifest
from lowrank_speech.cli import app
from lowrank_speech.upkeep import clean
from lowrank_speech.workflow.experiments import open_experiment
from lowrank_speech.workflow.jobs import jobs
from workflow_tree import tiny_config


def command(*words, text=None):
    result = CliRunner().invoke(app, [str(word) for word in words], input=text)
    return result.exit_code, result.stdout, result.stderr


def written(folder: Path, config: dict) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A folder with config.yaml and all artefacts of the experiment, an output and a log for each."""
    folder = tmp_path_factory.mktemp("upkeep")
    experiment = open_experiment(written(folder, tiny_config()))
    for job in jobs(experiment.slices, experiment.layout):
        manifest, log = folder / job.manifest, folder / job.log
        for parent in (manifest.parent, log.parent):
            parent.mkdir(parents=True, exist_ok=True)
        output = manifest.with_name(f"{manifest.stem}.bin")
        output.write_bytes(job.manifest.encode())
        log.write_text("INFO done")
        Manifest(job.stage, {}).write(manifest, [output])
    return folder


@pytest.fixture
def here(complete, tmp_path, monkeypatch):
    shutil.copytree(complete, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


EXP = Path(tiny_config()["output"])
SYSTEM = "wav2vec2/asr/full"


def test_a_moved_experiment_is_as_its_manifests_say(here):
    (here / "elsewhere").mkdir()
    shutil.move(here / EXP, here / "elsewhere/mine")
    code, said, _ = command("verify", "elsewhere/mine")
    number = len(list((here / "elsewhere/mine").rglob("*.cost.json")))
    assert code == 0 and said.startswith(f"{number} artefacts, {number} files, ")
    assert said.endswith("all are as their manifests say\n")


def test_every_kind_of_damage_is_named_and_its_manifest_removed(here):
    train = here / EXP / "train" / SYSTEM
    (train / "train.bin").write_bytes(b"?" * (train / "train.bin").stat().st_size)
    (here / EXP / "score" / SYSTEM / "greedy/test/score.bin").unlink()
    (here / EXP / "base/whisper/base.bin").write_bytes(b"")
    (here / EXP / "lang/chars/lang.json").write_text("{")
    code, said, _ = command("verify", EXP, "--json")
    found = json.loads(said)
    assert code == 1
    assert {(Path(f["file"]).relative_to(EXP).as_posix(), f["what"]) for f in found["faults"]} == {
        (f"train/{SYSTEM}/train.bin", "content"),
        (f"score/{SYSTEM}/greedy/test/score.bin", "missing"),
        ("base/whisper/base.bin", "size"),
        ("lang/chars/lang.json", "unreadable"),
    }
    code, said, _ = command("verify", EXP)
    assert code == 1 and f"content    {EXP}/train/{SYSTEM}/train.bin  (sha256 " in said and "4 differ" in said
    before = {path for path in (here / EXP).rglob("*") if path.is_file()}
    assert command("verify", EXP, "--remove")[0] == 1
    gone = before - {path for path in (here / EXP).rglob("*") if path.is_file()}
    assert gone == {here / fault["manifest"] for fault in found["faults"]} and len(gone) == 4
    assert command("verify", EXP)[0] == 0


@pytest.mark.parametrize(("folder", "said"), [("nothing", "is not a folder"), (".snakemake", "has no artefact with a")])
def test_what_is_no_experiment_is_refused(here, folder, said):
    (here / ".snakemake").mkdir()
    code, _, error = command("verify", folder)
    assert code == 2 and said in error


def test_a_complete_experiment_has_nothing_to_clean(here):
    assert command("clean", "config.yaml") == (0, f"{EXP}: everything is needed\n", "")


def files(here):
    return {path.relative_to(here / EXP).as_posix() for path in (here / EXP).rglob("*") if path.is_file()}


def test_a_removed_method_and_test_set_go_with_their_logs_and_nothing_else(here):
    (here / EXP / "notes").mkdir()
    (here / EXP / "notes/mine.txt").write_text("keep")
    for name in (f"export/{SYSTEM}/dense", f"decode/{SYSTEM}/greedy/dev", f"scratch/train/{SYSTEM}"):
        for place in (name, name.replace("full", "lowrank_lora")):
            (here / EXP / place).mkdir(parents=True)
            (here / EXP / place / "file").write_text("kept with its system")
    config = tiny_config()
    config["systems"]["methods"].remove("lowrank_lora")
    config["methods"].pop("lowrank_lora")
    before = files(here)
    code, said, _ = command("clean", written(here, config), "--json")
    found = json.loads(said)
    assert code == 0 and files(here) == before, "--json only lists"
    listed = {Path(part["path"]).relative_to(EXP).as_posix() for part in found["unneeded"]}
    systems = [f"{base}/{task}/lowrank_lora" for base in ("wav2vec2", "whisper") for task in ("asr", "lid")]
    made = {f"{stage}/{system}" for stage in ("train", "decode", "score") for system in systems}
    lora = SYSTEM.replace("full", "lowrank_lora")
    assert listed == made | {f"logs/{name}" for name in made} | {f"scratch/train/{lora}", f"export/{lora}"}
    code, said, error = command("clean", "config.yaml")
    assert code == 0 and "nothing was removed; to remove them: --yes" in said, error
    code, said, _ = command("clean", "config.yaml", "--yes")
    assert code == 0 and f"{EXP}/train/{lora}" in said
    assert files(here) == {name for name in before if "/lowrank_lora/" not in f"{name}/"}
    assert not (here / EXP / "train" / lora).exists(), "empty folders go too"
    assert command("clean", "config.yaml")[1] == f"{EXP}: everything is needed\n"


def test_a_split_goes_without_the_others_in_its_folder(here):
    (here / EXP / "corpus/babel/old.jsonl.gz").write_text("x" * 9)
    (here / EXP / "corpus/babel/old.json").write_text("{}")
    (here / EXP / "features/whisper/babel/.12.tmp.train.h5").write_text("of a killed job")
    root, needed = clean.opened([here / "config.yaml"])
    parts = {part.path: part for part in clean.unneeded(root, needed)}
    assert set(parts) == {"corpus/babel/old.*", "features/whisper/babel/12.*"}
    assert parts["corpus/babel/old.*"].bytes == 11


def test_all_configs_of_a_folder_count(here):
    config = tiny_config()
    config["systems"]["methods"] = ["full"]
    one = written(here, config)
    other = here / "other.yaml"
    other.write_text(yaml.safe_dump(tiny_config()), encoding="utf-8")
    assert "no system needs" in command("clean", one)[1]
    assert command("clean", one, other)[1] == f"{EXP}: everything is needed\n"
    other.write_text(yaml.safe_dump({**tiny_config(), "output": "exp/other"}), encoding="utf-8")
    code, _, error = command("clean", one, other)
    assert code == 2 and "the configs write to different folders" in error


def test_cleaning_waits_for_a_run(here):
    from lowrank_speech.workflow.launch import alone

    (here / EXP / "train/whisper/asr/gone").mkdir()
    (here / EXP / "train/whisper/asr/gone/train.json").write_text("{}")
    with alone("make run"):
        done = subprocess.run(
            [sys.executable, "-m", "lowrank_speech", "clean", "config.yaml", "--yes"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2 and "is working in" in done.stderr
    assert (here / EXP / "train/whisper/asr/gone/train.json").exists()
