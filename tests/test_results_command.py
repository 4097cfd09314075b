"""``lowrank-speech results``: the table again, as CSV and LaTeX, and two experiments compared."""

# ruff: noqa: F811  (fixtures of another test file)

import csv
import json
import shutil
from pathlib import Path

import pytest

from lowrank_speech.reporting.latex import escaped
from test_report import rows
from test_report_compared import call, three  # noqa: F401


def test_results_are_those_of_the_report(three, capsys):
    code, out, _ = call(capsys, "results", three)
    assert code == 0 and out.startswith((three / "report/results.txt").read_text().rstrip())
    assert out.endswith(f"\n{three}/report/report.html\n")
    assert call(capsys, "results", three, "--csv")[1] == (three / "report/results.csv").read_text()
    code, out, _ = call(capsys, "results", three, "--json")
    assert [row["method"] for row in json.loads(out)] == ["full", "lowrank", "lora"]
    config = three / "config.yaml"
    config.write_text(f"experiment: x\ncorpora: {{}}\noutput: {three}\n")
    assert call(capsys, "results", config, "--csv")[1] == (three / "report/results.csv").read_text()


def test_results_for_latex(three, capsys):
    code, out, _ = call(capsys, "results", three, "--latex")
    assert code == 0 and out.count("\\toprule") == out.count("\\bottomrule") == 1
    known = {row["method"]: row for row in rows(three)}
    best = min(known, key=lambda method: float(known[method]["wer"]))
    found = {}
    for line in out.splitlines():
        cells = [cell.strip() for cell in line.strip().removesuffix("\\\\").split("&")]
        if len(cells) == 7 and cells[1] in known:
            found[cells[1]] = cells
    assert list(found) == ["full", "lowrank", "lora"]
    for method, cells in found.items():
        wer = f"{100 * float(known[method]['wer']):.1f}"
        assert cells[4] == (f"\\textbf{{{wer}}}" if method == best else wer)
        assert cells[2] == f"{float(known[method]['parameters_total']) / 1e6:.1f}"
    assert escaped("a_b & 50 % of {x}\\~^#$<>") == (
        r"a\_b \& 50 \% of \{x\}\textbackslash{}\textasciitilde{}\textasciicircum{}\#\$\textless{}\textgreater{}"
    )


def test_two_experiments_are_compared_system_by_system(three, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(three, other)
    full = Path("wav2vec2/asr/full/greedy/test")
    shutil.rmtree(other / "score" / full)
    shutil.copytree(three / "score/wav2vec2/asr/lora/greedy/test", other / "score" / full)
    shutil.rmtree(other / "score/wav2vec2/asr/lora")
    code, out, _ = call(capsys, "results", three, other, "--json")
    found = {(row["system"], row["metric"]): row for row in json.loads(out)}
    assert code == 0 and {system for system, _ in found} == {"wav2vec2/asr/full", "wav2vec2/asr/lowrank"}
    same, mixed = found["wav2vec2/asr/lowrank", "wer"], found["wav2vec2/asr/full", "wer"]
    assert (same["difference"], same["p"]) == (0, 1)
    known = {row["method"]: float(row["wer"]) for row in rows(three)}
    assert mixed["difference"] == pytest.approx(known["full"] - known["lora"])
    # The same test as `compare` of the two systems within one experiment.
    words = ("compare", three, f"{full}", "wav2vec2/asr/lora/greedy/test", "--json")
    (direct,) = json.loads(call(capsys, *words)[1]).values()
    assert [mixed["low"], mixed["high"]] == direct["wer"]["interval"] and mixed["p"] == direct["wer"]["p"]
    text = call(capsys, "results", three, other)[1]
    assert "not told apart" in text and f"only in {three}: wav2vec2/asr/lora/greedy/test" in text
    table = list(csv.DictReader(call(capsys, "results", three, other, "--csv")[1].splitlines()))
    assert float(table[0]["difference"]) == pytest.approx(mixed["difference"])
    assert "\\toprule" in call(capsys, "results", three, other, "--latex")[1]
    path = other / "score" / full / "utterances.tsv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    text = call(capsys, "results", three, other)[1]
    assert "not tested: " in text and "decoded 1 utterances that" in text and "  not tested" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "nowhere does not exist; give the folder of an experiment"),
        ((".",), "is not the folder of an experiment"),
        (("EXP", "--csv", "--latex"), "give only one of --csv, --latex and --json"),
        (("EXP", "empty"), "has no scores yet"),
        (("empty",), "has no report yet; finish it with `lowrank-speech run CONFIG`"),
    ],
)
def test_results_name_what_is_wrong(three, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "score").mkdir(parents=True)
    code, out, error = call(capsys, "results", *(three if word == "EXP" else word for word in words))
    assert (code, out) == (2, "") and message in error
