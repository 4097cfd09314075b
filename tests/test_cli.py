"""The command line: its output and its errors."""

import json
import subprocess
import sys
import types

import pytest

from lowrank_speech import cli

SCORES = (
    "id\tx\ty\tz\na\t0\t-3\t-4\nb\t0\t-1\t-5\nc\t-2\t0\t-2\nd\t-.5\t0\t-3\ne\t-3\t-3\t0\nf\t-4\t-2\t0\ng\t0\t-2\t-.5\n"
)
LABELS = "a x\nb x\nc y\nd y\ne z\nf z\ng z\n"


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    """Write files, run the command in their folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*argv, **files):
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        with pytest.raises(SystemExit) as left:
            cli.main([str(a) for a in argv])
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return call


ASR = {"ref": "a the cat sat\nb hello world\nc one\n", "hyp": "a the cat\nb hallo world\nc one\n"}


def test_asr_for_people(call):
    code, out, err = call("score", "asr", "ref", "hyp", "--bootstrap", 0, **ASR)
    assert code == 0 and not err
    assert out.splitlines()[0] == "%WER 33.33 [ 2 / 6, 0 ins, 1 del, 1 sub ]"
    assert "hallo" not in out


def test_asr_interval_in_the_first_line(call):
    _, out, _ = call("score", "asr", "ref", "hyp", "--confidence", 0.9, **ASR)
    assert "sub ] [ 90% interval " in out.splitlines()[0]


def test_asr_json(call):
    code, out, _ = call("score", "asr", "ref", "hyp", "--json", **ASR)
    result = json.loads(out)
    assert code == 0
    assert (result["wer"], result["words"]) == (2 / 6, 6)
    assert (result["substitutions"], result["deletions"], result["insertions"]) == (1, 1, 0)
    assert set(result["interval"]) == {"wer", "cer", "ser"} and "per_utterance" not in result


def test_asr_per_utterance(call):
    _, out, _ = call("score", "asr", "ref", "hyp", "--per-utterance", **ASR)
    assert "b %WER 50.00 [ 1 / 2, 0 ins, 0 del, 1 sub ]\n  ref hello world\n  hyp hallo world" in out
    assert "1  sub    hello  ->  hallo" in out
    _, out, _ = call("score", "asr", "ref", "hyp", "--per-utterance", "--json", **ASR)
    rows = json.loads(out)["per_utterance"]
    assert [row["id"] for row in rows] == ["a", "b", "c"] and rows[1]["substitutions"] == 1


def test_asr_maps(call):
    code, out, _ = call(
        *("score", "asr", "ref", "hyp", "--utt2lang", "u2l", "--utt2spk", "u2s", "--json"),
        **ASR,
        u2l="a en\nb de\nc de\n",
        u2s="a s\nb t\nc t\n",
    )
    result = json.loads(out)
    assert code == 0 and result["by_language"]["de"]["words"] == 3 and result["resampled"] == "speakers"
    _, out, _ = call("score", "asr", "ref", "hyp", "--utt2lang", "u2l")
    assert "mean over languages: %WER 33.33" in out


def test_asr_missing(call):
    files = {"ref": "a x\nb y\n", "hyp": "a x\n"}
    code, out, err = call("score", "asr", "ref", "hyp", **files)
    assert code == 2 and not out
    assert err.startswith("error: hyp: no hypothesis for utterance 'b'") and err.count("\n") == 1
    code, out, _ = call("score", "asr", "ref", "hyp", "--missing-as-empty")
    assert code == 0 and "Scored 2 utterances, 1 not present in hyp." in out


@pytest.mark.parametrize(
    "argv, match",
    [
        (("score", "asr", "none", "hyp"), "none: the file does not exist"),
        (("score", "asr", "ref", "extra"), "utterance 'z' has no reference"),
        (("score", "asr", "ref", "twice"), "twice:2: id 'a' has 'y' here and 'x' in line 1; keep one of the two lines"),
        (
            ("score", "asr", "ref", "hyp", "--bootstrap", "1"),
            "bootstrap is 1; it must be 0 (no intervals) or at least 2",
        ),
        (("score", "asr", "ref", "hyp", "--resample", "speakers"), "utt2spk"),
        (("score", "lid", "ref", "hyp"), "error: "),
        (("params",), "either a model (folder, hub name or preset) or --preset"),
        (("params", "--preset", "a", "folder"), "either a model (folder, hub name or preset) or --preset"),
        (("params", "folder", "--rank", "4", "--reduction", "0.2"), "either --rank R or --reduction"),
        (("params", "folder", "--reduction", "24"), "it must be a share between 0 and 1"),
    ],
)
def test_errors_are_one_line(call, argv, match):
    code, out, err = call(*argv, **ASR, extra=ASR["hyp"] + "z x\n", twice="a x\na y\n")
    assert code == 2 and not out and "Traceback" not in err
    assert err.startswith("error: ") and match in err and err.count("\n") == 1


def test_lid(call):
    code, out, err = call("score", "lid", "scores", "labels", "--json", scores=SCORES, labels=LABELS)
    result = json.loads(out)
    assert code == 0 and not err
    assert result["act_cprimary"] == pytest.approx(0.375) and result["min_cprimary"] == pytest.approx(1 / 9)
    assert result["accuracy"] == pytest.approx(6 / 7) and result["eer"] == pytest.approx(1 / 14)
    _, out, _ = call("score", "lid", "scores", "labels", "--minimum", "per-language", "--eer", "nearest")
    assert "C_primary minimum 0.0000" in out and "%EER 14.29" in out


def test_lid_refuses_what_makes_no_sense(call):
    code, out, err = call(
        "score", "lid", "scores", "labels", scores=SCORES.replace("-.5\t0\t-3", "nan\t0\t-3"), labels=LABELS
    )
    assert code == 2 and not out and err.startswith("error: scores: segment 'd', language 'x': the score is nan")


LAYERS = [
    {"name": f"encoder.layers.{i}.fc", "d_out": 40, "d_in": 10, "rank": 4, "before": 400, "after": 200}
    for i in range(3)
]


@pytest.fixture
def counting(monkeypatch):
    """Stands in for the models' side: what the command passes on, and how it shows the answer."""
    asked = []

    def count(**kwargs):
        asked.append(kwargs)
        if kwargs["model"] == "broken":
            raise ValueError("broken:\nno config.json")
        return {"total_before": 2400, "total_after": 1800, "reduction": 0.25, "layers": LAYERS}

    fake = types.ModuleType("counting")
    fake.count = count
    monkeypatch.setitem(sys.modules, "lowrank_speech.models.counting", fake)
    return asked


def test_params(call, counting):
    code, out, _ = call("params", "--preset", "xls-r-300m", "--layers", "ffn", "--rank", 4)
    assert code == 0
    assert counting == [
        {"model": None, "preset": "xls-r-300m", "layers": "ffn", "rank": 4} | dict.fromkeys(("reduction", "revision"))
    ]
    lines = out.splitlines()
    assert lines[0] == "2,400 -> 1,800 parameters, -25.0 %"
    assert lines[-1].split() == ["encoder.layers.*.fc", "3", "40", "10", "4", "1200", "600"]


def test_params_json_and_errors(call, counting):
    _, out, _ = call("params", "folder", "--reduction", 0.24, "--json")
    assert json.loads(out)["layers"] == LAYERS and counting[-1]["model"] == "folder"
    code, out, err = call("params", "broken", "--rank", 4)
    assert (code, out, err) == (2, "", "error: broken: no config.json\n")


def test_params_of_the_paper(call):
    code, out, _ = call("params", "--preset", "xls-r-300m", "--layers", "ffn", "--rank", 512, "--json")
    result = json.loads(out)
    assert code == 0 and len(result["layers"]) == 48
    assert (result["total_before"], result["total_after"]) == (315_438_720, 239_941_248)
    assert result["reduction"] == pytest.approx(0.239, abs=5e-4)
    code, out, err = call("params", "--preset", "xls-r", "--rank", 4)
    assert (code, out) == (2, "") and err.startswith("error: ") and "xls-r-300m" in err


def test_version_and_help(call):
    code, out, _ = call("--version")
    assert code == 0 and out.startswith("lowrank-speech ")
    code, out, _ = call("--help")
    assert code == 0 and "score" in out and "params" in out
    code, _, err = call("score", "asr", "--foo")
    assert code == 2 and "--foo" in err and "Traceback" not in err


def test_help_loads_no_heavy_library():
    code = (
        "import sys\nfrom lowrank_speech import cli\n"
        "try: cli.main(['--help'])\nfinally: assert not {'numpy', 'torch', 'pandas', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
