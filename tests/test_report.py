"""The stage report, on a whole tree of manifests: what it writes, and that nothing is invented or executed."""

import csv
import html.parser
import json
import random
import re
import struct
from pathlib import Path

import pytest

import report_tree
from lowrank_speech.stages import report


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("exp")
    assert report_tree.run(root, report_tree.make_tree(root)) == 0
    return root


def small(root: Path, task: str = "asr", method: str = "full") -> dict:
    """A tree of one system; returns the stage's config."""
    report_tree.system(root, random.Random(3), "wav2vec2", task, method)
    system = {"base": "wav2vec2", "task": task, "method": method, "type": report_tree.TASKS[task]}
    return {"experiment": "small", "systems": [system], "report": {"dpi": 50}}


def edit(path: Path, change) -> None:
    """Let ``change`` work on a manifest's record in place."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "report/results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def page(root: Path) -> str:
    return (root / "report/report.html").read_text(encoding="utf-8")


def test_manifest_names_every_output(tree):
    manifest = json.loads((tree / "report/report.json").read_text())
    names = {"results.csv", "results.txt", "error.png", "cost.png", "curves.png", "report.html"}
    assert set(manifest["outputs"]) == names
    assert {path.name for path in (tree / "report").iterdir()} == names | {"report.json"}
    assert manifest["numbers"]["systems"] == 20
    for name in ("error", "cost", "curves"):
        data = (tree / f"report/{name}.png").read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert data.startswith(b"\x89PNG") and width > 400 and height > 200


def test_csv_holds_the_manifests_figures(tree):
    table = rows(tree)
    assert len(table) == 20
    for row in table:
        name = f"{row['base']}/{row['task']}/{row['method']}"
        score = json.loads((tree / f"score/{name}/score.json").read_text())["numbers"]
        train = json.loads((tree / f"train/{name}/train.json").read_text())
        decode = json.loads((tree / f"decode/{name}/decode.json").read_text())["numbers"]
        for key in ("wer", "cer") if row["type"] == "asr" else ("accuracy", "act_cprimary", "min_cprimary", "eer"):
            assert float(row[key]) == score[key]
            assert [float(row[f"{key}_low"]), float(row[f"{key}_high"])] == score["interval"][key]
        assert int(row["peak_bytes"]) == train["peak_bytes"]
        assert int(row["parameters_trained"]) == train["numbers"]["parameters_trained"]
        dense = train["numbers"]["parameters_dense"]
        assert float(row["reduction"]) == pytest.approx(1 - train["numbers"]["parameters_total"] / dense)
        assert float(row["rtf_total"]) == pytest.approx(decode["rtf"] + decode["frontend_rtf"])
        assert row["set_aside_train"] == "3"
        # What belongs to the other task is empty, not zero.
        assert (row["wer"] == "") == (row["type"] == "lid") and (row["eer"] == "") == (row["type"] == "asr")


def test_unadapted_base_and_chance_lead_each_block(tree):
    table = rows(tree)
    assert [r["method"] for r in table[::5]] == ["base"] * 4
    text = (tree / "report/results.txt").read_text()
    first = [line.split()[0] for line in re.findall(r"-{20,}\n(.*)", text)]
    assert first == ["base", "base", "chance", "chance"]
    assert re.search(r"majority +27\.3", text)  # 30 of 110 segments are of one language


def test_text_fits_a_terminal(tree):
    text = (tree / "report/results.txt").read_text()
    assert max(map(len, text.splitlines())) <= 120
    for block in text.split("\n\n")[1:]:
        lines = block.strip().splitlines()[2:]
        ends = {len(line) for line in lines if not line.startswith(("chance", "majority"))}
        assert len(ends) == 1, block  # the last column is aligned to the right


class References(html.parser.HTMLParser):
    """Collects what a page would load, and checks that its tags close."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [value for name, value in attrs if name in ("src", "srcset", "href", "action", "data")]
        if tag not in ("meta", "img", "br", "source", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_self_contained(tree):
    found = References()
    found.feed(page(tree))
    assert found.open == [] and not found.tags & {"script", "link", "iframe"}
    assert len(found.loads) == 6 and all(value.startswith("data:image/png;base64,") for value in found.loads)
    assert not re.search(r"https?://|url\(|@import", page(tree))
    for section in ("Results", "Plots", "What is confused", "layer by layer", "Set aside", "Settings and versions"):
        assert section in page(tree)
    assert "tr.best > :first-child" in page(tree)  # our own stylesheet is not escaped


def test_what_was_factorised_is_said_for_each_base(tree):
    assert "6 layers of wav2vec2, 4 layers of whisper factorised first" in page(tree)


def test_same_inputs_give_the_same_files(tree, tmp_path):
    cfg = small(tmp_path)
    made = []
    for _ in range(2):
        assert report_tree.run(tmp_path, cfg) == 0
        made.append({p.name: p.read_bytes() for p in (tmp_path / "report").iterdir() if p.name != "report.json"})
    assert made[0] == made[1]


def test_text_from_data_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>&\"'"
    cfg = small(tmp_path) | {"experiment": evil}

    def poison(record):
        record["numbers"]["confusions"]["substitutions"].insert(0, [evil, "b", 99])
        record["numbers"]["worst"][0].update(id=evil, ref=evil, hyp="$x^2$ {{ 7*7 }}")
        record["numbers"]["by_language"] = {evil: record["numbers"]["by_language"]["de"]}
        record["cfg"]["note"] = evil

    edit(tmp_path / "score/wav2vec2/asr/full/score.json", poison)
    path = tmp_path / "train/wav2vec2/asr/full/set_aside.tsv"
    path.write_text(f"id\treason\tdetail\n{evil}\t{evil}\t{evil}\n")
    assert report_tree.run(tmp_path, cfg) == 0
    text = page(tmp_path)
    assert "<script" not in text and text.count("&lt;script&gt;") >= 7
    assert "{{ 7*7 }}" in text and "$x^2$" in text  # data is no template


def test_odd_names_do_not_break_the_plots(tmp_path):
    cfg = small(tmp_path, method="full")
    for stage in ("train", "decode", "score"):
        (tmp_path / f"{stage}/wav2vec2/asr/full").rename(tmp_path / f"{stage}/wav2vec2/asr/a_$b^c_{{")
    cfg["systems"][0]["method"] = "a_$b^c_{"
    assert report_tree.run(tmp_path, cfg) == 0


def test_what_is_not_known_is_a_dash(tmp_path):
    cfg = small(tmp_path)
    name = "wav2vec2/asr/full"
    edit(tmp_path / f"train/{name}/train.json", lambda r: r.update(numbers={}, peak_bytes=None))
    edit(tmp_path / f"decode/{name}/decode.json", lambda r: r.update(numbers={"rtf": 0.02, "frontend_rtf": None}))
    edit(tmp_path / f"score/{name}/score.json", lambda r: r.update(numbers={"wer": 0.25, "interval": {"wer": None}}))
    (tmp_path / f"train/{name}/metrics.jsonl").unlink()
    (tmp_path / f"train/{name}/set_aside.tsv").unlink()
    assert report_tree.run(tmp_path, cfg) == 0
    (row,) = rows(tmp_path)
    known = {key for key, value in row.items() if value}
    assert known == {"task", "type", "base", "method", "wer", "device", "rtf", "peak_bytes_decode"}
    line = (tmp_path / "report/results.txt").read_text().splitlines()[-1].split()
    # No column for an interval that nobody has; the front end's time is not known, so the sum is a lower bound.
    assert line == ["full", "25.0", "–", "–", "–", "–", "–", "–", "≥", "0.0200"]
    assert "Nothing was set aside" in page(tmp_path)


def test_unadapted_base_alone(tmp_path):
    cfg = small(tmp_path, task="lid", method="base")
    assert report_tree.run(tmp_path, cfg) == 0
    assert "Only the unadapted base: accuracy" in page(tmp_path)


@pytest.mark.parametrize("stage", ["train", "decode", "score"])
def test_missing_manifest_is_named_with_the_command(tmp_path, capsys, stage):
    cfg = small(tmp_path)
    path = tmp_path / f"{stage}/wav2vec2/asr/full/{stage}.json"
    path.unlink()
    assert report_tree.run(tmp_path, cfg) == 2
    error = capsys.readouterr().err
    assert f"{path} does not exist" in error and f"snakemake --cores all {path}" in error
    assert not (tmp_path / "report").exists()


def test_missing_factorisation_is_named(tmp_path, capsys):
    cfg = small(tmp_path, method="lowrank")
    assert report_tree.run(tmp_path, cfg) == 0  # without the key it is optional
    cfg["systems"][0]["factorisation"] = "rank512-0"
    assert report_tree.run(tmp_path, cfg) == 2
    assert "factorise/wav2vec2/rank512-0/factorise.json does not exist" in capsys.readouterr().err


def test_methods_share_a_low_rank_model(tree):
    assert page(tree).count("<summary>wav2vec2, lowrank, lowrank_lora: 6 layers</summary>") == 1


@pytest.mark.parametrize("text", ['{"stage": "sc', '{"stage": "train", "numbers": {}}', '{"stage": "score"}', "[]"])
def test_broken_manifest_is_named(tmp_path, capsys, text):
    cfg = small(tmp_path)
    path = tmp_path / "score/wav2vec2/asr/full/score.json"
    path.write_text(text)
    assert report_tree.run(tmp_path, cfg) == 2
    assert str(path) in capsys.readouterr().err


def test_no_error_rate_at_all(tmp_path, capsys):
    cfg = small(tmp_path)
    edit(tmp_path / "score/wav2vec2/asr/full/score.json", lambda r: r.update(numbers={"wer": None}))
    assert report_tree.run(tmp_path, cfg) == 2
    assert "holds an error rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"systems": []}, "there is none"),
        ({"systems": [{"base": "a", "task": "b", "method": "c", "type": "asr"}] * 2}, "stands there twice"),
        ({"systems": [{"base": "a", "task": "b", "method": "c", "type": "tts"}]}, "'tts' is none of"),
        ({"titel": "x"}, "unknown key 'titel'"),
        ({"report": {"dpi": 5}}, "dpi is 5"),
        ({"corpora": ["missing"]}, "corpus.json does not exist"),
    ],
)
def test_bad_config(tmp_path, capsys, change, message):
    assert report_tree.run(tmp_path, small(tmp_path) | change) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        report.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "results.csv" in text and "--root" in text and "score.json" in text
