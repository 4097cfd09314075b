"""The stage score: from a decoded folder to the manifest, and its errors."""

import json
import subprocess
import sys

import pytest

from lowrank_speech.artefact import read_manifest
from lowrank_speech.stages import score


def decoded(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        stem, suffix = name.rsplit("_", 1)
        (folder / f"{stem}.{suffix}").write_text(content)
    return folder


def run(folder, manifest, **cfg):
    cfg = {"seed": 1, "score": {"bootstrap": 100}} | cfg
    return score.main(["--cfg", json.dumps(cfg), "--decoded", str(folder), "--manifest", str(manifest)])


def test_asr(tmp_path):
    folder = decoded(
        tmp_path / "d",
        ref_txt="a x y z\nb x y\n",
        hyp_txt="b x\na x y z\n",
        languages_tsv="id\tlanguage\na\ten\nb\tde\n",
    )
    assert run(folder, tmp_path / "score.json", type="asr") == 0
    record = read_manifest(tmp_path / "score.json", "score")
    numbers = record["metrics"]
    assert (numbers["type"], numbers["wer"], numbers["deletions"]) == ("asr", 0.2, 1)
    assert numbers["by_language"]["de"]["wer"] == 0.5 and "by_speaker" not in numbers
    assert len(numbers["interval"]["wer"]) == 2
    # The resolved config has the defaults too.
    assert record["cfg"]["score"]["confidence"] == 0.95 and record["seed"] == 1


def test_asr_with_speakers(tmp_path):
    folder = decoded(tmp_path / "d", ref_txt="a x\nb x\n", hyp_txt="a x\nb y\n", speakers_tsv="a s\nb t\n")
    assert run(folder, tmp_path / "score.json", type="asr") == 0
    numbers = read_manifest(tmp_path / "score.json")["metrics"]
    assert numbers["resampled"] == "speakers" and numbers["by_speaker"]["t"]["wer"] == 1


def test_lid(tmp_path):
    folder = decoded(
        tmp_path / "d",
        scores_tsv="id\ten\tde\na\t0\t-5\nb\t-5\t0\nc\t0\t-1\n",
        labels_tsv="id\tlanguage\na\ten\nb\tde\nc\tde\n",
    )
    options = {"bootstrap": 50, "minimum": "per-language", "p_target": [0.5]}
    assert run(folder, tmp_path / "score.json", type="lid", score=options) == 0
    numbers = read_manifest(tmp_path / "score.json")["metrics"]
    assert numbers["accuracy"] == pytest.approx(2 / 3)
    assert numbers["minimum"] == "per-language" and list(numbers["act_cavg"]) == ["0.5"]
    assert numbers["chance"] == {
        "accuracy": 0.5,
        "macro_accuracy": 0.5,
        "majority_accuracy": pytest.approx(2 / 3),
        "act_cprimary": 1.0,
        "min_cprimary": 1.0,
        "eer": 0.5,
        "cllr": 1.0,
    }


def test_lid_by_duration_and_source(tmp_path):
    files = {
        "scores_tsv": "id\ten\tde\na\t0\t-5\nb\t-5\t0\nc\t0\t-1\nd\t0\t-1\n",
        "labels_tsv": "id\tlanguage\na\ten\nb\tde\nc\tde\nd\ten\n",
        "seconds_tsv": "id\tseconds\na\t3.0\nb\t3.5\nc\t12.0\nd\t11.0\n",
        "sources_tsv": "id\tsource\n",
    }
    folder = decoded(tmp_path / "d", **files)
    options = {"bootstrap": 10, "durations": [10]}
    assert run(folder, tmp_path / "score.json", type="lid", score=options) == 0
    numbers = read_manifest(tmp_path / "score.json")["metrics"]
    assert {name: part["accuracy"] for name, part in numbers["by_duration"].items()} == {
        "below 10 s": 1,
        "10 s or more": 0.5,
    }
    assert "by_source" not in numbers  # only a header: no source is known
    decoded(tmp_path / "d", sources_tsv="id\tsource\na\tx\nb\tx\nc\ty\nd\ty\n")
    options |= {"resample": "sources"}
    assert run(folder, tmp_path / "score.json", type="lid", score=options) == 0
    numbers = read_manifest(tmp_path / "score.json")["metrics"]
    assert set(numbers["by_source"]) == {"x", "y"} and numbers["resampled"] == "sources"


def test_sources_are_only_for_language_recognition(tmp_path, capsys):
    folder = decoded(tmp_path / "d", ref_txt="a x\nb y\n", hyp_txt="a x\nb x\n", speakers_tsv="a s\nb t\n")
    assert run(folder, tmp_path / "score.json", type="asr", score={"bootstrap": 10, "resample": "sources"}) == 2
    assert "resample: sources is for language recognition" in capsys.readouterr().err


def test_the_same_run_gives_the_same_numbers(tmp_path):
    folder = decoded(tmp_path / "d", ref_txt="a x y z\nb x y\nc p\n", hyp_txt="a x y\nb x y\nc q\n")
    for name in ("one.json", "two.json"):
        run(folder, tmp_path / name, type="asr")
    one, two = (read_manifest(tmp_path / name)["metrics"] for name in ("one.json", "two.json"))
    assert one == two


@pytest.mark.parametrize(
    "cfg, match",
    [
        ({"type": "mt"}, "cfg.type: 'mt' is not valid; expected one of: asr, lid"),
        ({"type": "asr", "beam": 4}, "unknown key 'beam'"),
        ({"type": "asr", "seed": -1}, "cfg.seed is -1; it must be at least 0"),
        ({"type": "asr", "score": {"bootstraps": 4}}, "cfg.score: unknown key 'bootstraps'"),
        (
            {"type": "asr", "score": {"bootstrap": 1}},
            "cfg.score.bootstrap is 1; it must be 0 (no intervals) or at least 2",
        ),
        ({"type": "lid", "score": {"p_target": [0.5, 1.0]}}, "cfg.score.p_target[1] is 1.0; it must be below 1"),
        ({"type": "asr", "score": {"confidence": 95}}, "cfg.score.confidence is 95; it must be below 1"),
        (
            {"type": "asr", "score": {"minimum": "least"}},
            "cfg.score.minimum: 'least' is not valid; expected one of: common, per-language",
        ),
        ({"type": "asr"}, "hyp.txt: no hypothesis for utterance 'b'"),
        ({"type": "lid"}, "scores.tsv: the file does not exist"),
    ],
)
def test_errors_leave_no_manifest(tmp_path, capsys, cfg, match):
    folder = decoded(tmp_path / "d", ref_txt="a x\nb y\n", hyp_txt="a x\n")
    assert run(folder, tmp_path / "score.json", **cfg) == 2
    assert not (tmp_path / "score.json").exists()
    assert match in capsys.readouterr().err


def test_missing_folder(tmp_path, capsys):
    assert run(tmp_path / "none", tmp_path / "score.json", type="asr") == 2
    assert "does not exist" in capsys.readouterr().err


def test_help_explains_and_loads_no_numpy():
    code = (
        "import sys\nfrom lowrank_speech.stages import score\n"
        "try: score.main(['--help'])\nfinally: assert not {'numpy', 'torch', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "hyp.txt and ref.txt" in done.stdout and "--decoded" in done.stdout


def test_scoring_imports_nothing_else_of_the_package():
    code = (
        "import sys\nfrom lowrank_speech.scoring import asr, files, lid, text\n"
        "names = [m for m in sys.modules if m.startswith('lowrank_speech.') and '.scoring' not in m]\n"
        "assert not names and 'torch' not in sys.modules, names"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
