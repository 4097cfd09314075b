"""The stage report on a complete tree of manifests: its outputs, and that it neither invents nor executes anything."""

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


@pytest.fixture(scope="module")
def more(tmp_path_factory) -> Path:
    """Recognition on two test sets with two decoders."""
    root = tmp_path_factory.mktemp("more")
    assert report_tree.run(root, report_tree.make_tree(root, tested=report_tree.MORE)) == 0
    return root


def small(root: Path, task: str = "asr", method: str = "full") -> dict:
    """A tree of one system; returns the stage's config."""
    report_tree.system(root, random.Random(3), "wav2vec2", task, method)
    system = {"base": "wav2vec2", "task": task, "method": method, "type": report_tree.TASKS[task]}
    return {"experiment": "small", "systems": [system], "tasks": report_tree.TESTED, "report": {"dpi": 50}}


def folder(root: Path, stage: str, name: str) -> Path:
    """Where a stage left the results of a system of `small`."""
    return root / stage / name / ("" if stage == "train" else "scores/test" if "/lid/" in name else "greedy/test")


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


def test_the_normaliser_is_named(tmp_path):
    cfg = small(tmp_path)
    path = folder(tmp_path, "score", "wav2vec2/asr/full") / "score.json"
    emptied = [{"id": f"utt{i}", "ref": "<UM>"} for i in range(5)]
    edit(path, lambda record: record["metrics"].update(normaliser="whisper-english", emptied_references=emptied))
    assert report_tree.run(tmp_path, cfg) == 0
    text = (tmp_path / "report/results.txt").read_text(encoding="utf-8")
    assert "asr (speech recognition) on wav2vec2, normaliser: whisper-english\n" in text
    assert (rows(tmp_path)[0]["normaliser"], rows(tmp_path)[0]["numbers"]) == ("whisper-english", "as-written")
    shown = page(tmp_path)
    assert "Whisper&#39;s normaliser for English" in shown and "References that normalise to nothing" in shown
    assert "utt0 (&lt;UM&gt;); utt1 (&lt;UM&gt;); utt2 (&lt;UM&gt;) …" in shown


def test_without_a_normaliser_nothing_is_said(tree):
    text = (tree / "report/results.txt").read_text(encoding="utf-8")
    assert "normaliser" not in text and "References that normalise to nothing" not in page(tree)


def test_results_of_different_normalisers_share_no_table(tmp_path, capsys):
    cfg = small(tmp_path)
    cfg["systems"] += small(tmp_path, method="lora")["systems"]
    path = folder(tmp_path, "score", "wav2vec2/asr/lora") / "score.json"
    edit(path, lambda record: record["metrics"].update(normaliser="house", numbers="words"))
    assert report_tree.run(tmp_path, cfg) == 2
    said = capsys.readouterr().err
    assert f"{path} was scored with normaliser: house, numbers: words, but " in said
    assert "with normaliser: none; score both with the same normaliser" in said


def test_manifest_names_every_output(tree):
    manifest = json.loads((tree / "report/report.json").read_text())
    names = {"results.csv", "results.txt", "comparisons.csv", "seeds.csv"}
    names |= {"error.png", "cost.png", "curves.png", "report.html"}
    names |= {"det.png", "reliability.png", "confusion.png"}
    assert set(manifest["outputs"]) == names
    assert {path.name for path in (tree / "report").iterdir()} == names | {"report.json", "report.cost.json"}
    numbers = manifest["metrics"]
    assert (numbers["systems"], numbers["results"], len(numbers["summary"])) == (20, 20, 3)
    for name in ("error", "cost", "curves"):
        data = (tree / f"report/{name}.png").read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert data.startswith(b"\x89PNG") and width > 400 and height > 200


def test_csv_holds_the_manifests_figures(tree):
    table = rows(tree)
    assert len(table) == 20
    for row in table:
        name = f"{row['base']}/{row['task']}/{row['method']}"
        place = f"{name}/{row['decoder']}/{row['test']}"
        score = json.loads((tree / f"score/{place}/score.json").read_text())["metrics"]
        train = json.loads((tree / f"train/{name}/train.json").read_text())["metrics"]
        cost = json.loads((tree / f"train/{name}/train.cost.json").read_text())
        decode = json.loads((tree / f"decode/{place}/decode.cost.json").read_text())
        for key in ("wer", "cer") if row["type"] == "asr" else ("accuracy", "act_cprimary", "min_cprimary", "eer"):
            assert float(row[key]) == score[key]
            assert [float(row[f"{key}_low"]), float(row[f"{key}_high"])] == score["interval"][key]
        assert int(row["peak_bytes"]) == cost["peak_bytes"] and float(row["seconds_train"]) == cost["seconds_train"]
        assert int(row["parameters_trained"]) == train["parameters_trained"]
        dense = train["parameters_dense"]
        assert float(row["reduction"]) == pytest.approx(1 - train["parameters_total"] / dense)
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
    for block in text.split("\n\n")[2:]:  # title and summary stand before the blocks
        if "---" not in block:
            continue  # flags and comparisons below a table
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
    assert len(found.loads) == 12 and all(value.startswith("data:image/png;base64,") for value in found.loads)
    assert not re.search(r"https?://|url\(|@import", page(tree))
    for section in ("Results", "Plots", "Errors", "Factorised layers", "Set aside", "Settings and versions"):
        assert section in page(tree)
    assert "tbody .best { font-weight: 700; }" in page(tree)  # our own stylesheet is not escaped


def test_what_was_factorised_is_said_for_each_base(tree):
    assert "6 layers of wav2vec2, 4 layers of whisper factorised first" in page(tree)


def test_same_inputs_give_the_same_files(tree, tmp_path):
    cfg = small(tmp_path)
    made = []
    for _ in range(2):
        assert report_tree.run(tmp_path, cfg) == 0
        files = [p for p in (tmp_path / "report").iterdir() if p.name != "report.cost.json"]
        made.append({p.name: p.read_bytes() for p in files})
    assert made[0] == made[1]


def test_text_from_data_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>&\"'"
    cfg = small(tmp_path) | {"experiment": evil}

    def poison(record):
        record["metrics"]["confusions"]["substitutions"].insert(0, [evil, "b", 99])
        record["metrics"]["worst"][0].update(id=evil, ref=evil, hyp="$x^2$ {{ 7*7 }}")
        record["metrics"]["by_language"] = {evil: record["metrics"]["by_language"]["de"]}
        record["cfg"]["note"] = evil

    edit(folder(tmp_path, "score", "wav2vec2/asr/full") / "score.json", poison)
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
    train, decode, score = (folder(tmp_path, stage, name) for stage in ("train", "decode", "score"))
    edit(train / "train.json", lambda r: r.pop("metrics"))
    (train / "train.cost.json").unlink()
    edit(decode / "decode.json", lambda r: r.update(metrics={}))
    edit(decode / "decode.cost.json", lambda r: [r.clear(), r.update(rtf=0.02, frontend_rtf=None)])
    edit(score / "score.json", lambda r: r.update(metrics={"wer": 0.25, "interval": {"wer": None}}))
    (tmp_path / f"train/{name}/metrics.jsonl").unlink()
    (tmp_path / f"train/{name}/set_aside.tsv").unlink()
    assert report_tree.run(tmp_path, cfg) == 0
    (row,) = rows(tmp_path)
    known = {key for key, value in row.items() if value}
    assert known == {"task", "type", "base", "method", "decoder", "test", "wer", "device", "rtf", "seed"}
    line = (tmp_path / "report/results.txt").read_text().splitlines()[-1].split()
    # No column for an interval that nobody has; the front end's time is not known, so the sum is a lower bound.
    assert line == ["full", "25.0", "–", "–", "–", "–", "–", "–", "≥", "0.0200"]
    assert "Nothing was set aside" in page(tmp_path)


def test_only_the_unadapted_base(tmp_path):
    cfg = small(tmp_path, task="lid", method="base")
    assert report_tree.run(tmp_path, cfg) == 0
    assert "Only the unadapted base: accuracy" in page(tmp_path)


@pytest.mark.parametrize("stage", ["train", "decode", "score"])
def test_missing_manifest_is_named_with_the_command(tmp_path, capsys, stage):
    cfg = small(tmp_path)
    path = folder(tmp_path, stage, "wav2vec2/asr/full") / f"{stage}.json"
    path.unlink()
    assert report_tree.run(tmp_path, cfg) == 2
    error = capsys.readouterr().err
    assert f"{path} does not exist" in error and f"snakemake --cores all {path}" in error
    assert not list((tmp_path / "report").glob("*"))


def test_missing_factorisation_is_named(tmp_path, capsys):
    cfg = small(tmp_path, method="lowrank")
    assert report_tree.run(tmp_path, cfg) == 0  # without the key it is optional
    cfg["systems"][0]["factorisation"] = "rank512-0"
    assert report_tree.run(tmp_path, cfg) == 2
    assert "factorise/wav2vec2/rank512-0/factorise.json does not exist" in capsys.readouterr().err


def test_methods_share_a_low_rank_model(tree):
    assert page(tree).count("<summary>wav2vec2, lowrank, lowrank_lora: 6 layers</summary>") == 1


@pytest.mark.parametrize("text", ['{"stage": "sc', '{"stage": "train", "metrics": {}}', '{"stage": "score"}', "[]"])
def test_broken_manifest_is_named(tmp_path, capsys, text):
    cfg = small(tmp_path)
    path = folder(tmp_path, "score", "wav2vec2/asr/full") / "score.json"
    path.write_text(text)
    assert report_tree.run(tmp_path, cfg) == 2
    assert str(path) in capsys.readouterr().err


def test_no_error_rate_at_all(tmp_path, capsys):
    cfg = small(tmp_path)
    edit(folder(tmp_path, "score", "wav2vec2/asr/full") / "score.json", lambda r: r.update(metrics={"wer": None}))
    assert report_tree.run(tmp_path, cfg) == 2
    assert "greedy/test/score.json ...); score them again" in capsys.readouterr().err


def test_a_row_for_each_system_decoder_and_test(more):
    table = rows(more)
    assert len(table) == 10 * 4 + 10 and list(table[0])[:7] == [
        *("task", "type", "base", "method", "adapt", "decoder", "test"),
    ]
    names = [tuple(row[key] for key in ("task", "base", "method", "decoder", "test")) for row in table]
    assert len(set(names)) == 50
    assert [name[3:] for name in names[:4]] == [
        ("greedy", "in_domain"),
        ("greedy", "out_of_domain"),
        ("beam4", "in_domain"),
        ("beam4", "out_of_domain"),
    ]
    for row in table:
        place = "/".join(row[key] for key in ("base", "task", "method", "decoder", "test"))
        score = json.loads((more / f"score/{place}/score.json").read_text())["metrics"]
        assert float(row["wer"] or row["accuracy"]) == score.get("wer", score.get("accuracy"))
    assert sum(int(row["stopped"]) for row in table) == 12


def test_tests_are_groups_of_columns_and_decoders_neighbouring_rows(more):
    text = (more / "report/results.txt").read_text()
    block = text[text.index("asr (speech recognition) on whisper") :].split("\n\n")[0].splitlines()
    assert block[1].split() == ["--", "in_domain", "--", "-", "out_of_domain", "-"]
    assert block[3].split()[:2] == ["method", "decoder"]
    # The base is degenerate, which a mark says: 3 of 60 hypotheses repeat themselves.
    block = [line.replace(" †", "") for line in block]
    assert [line.split()[:2] for line in block[5:9]] == [[m, d] for m in ("base", "full") for d in ("greedy", "beam4")]
    known = {(row["method"], row["decoder"], row["test"]): row for row in rows(more) if row["base"] == "whisper"}
    for line in block[5:]:
        method, decoder, first, _, second, *_ = line.split()
        for shown, test in ((first, "in_domain"), (second, "out_of_domain")):
            assert shown == f"{100 * float(known[method, decoder, test]['wer']):.1f}"
    found = References()
    found.feed(page(more))
    assert found.open == []
    assert page(more).count('scope="colgroup">in_domain') == 2 and "asr, whisper, full, beam4, out_of_domain" in page(
        more
    )


def test_wide_blocks_have_their_costs_below(tmp_path):
    tested = {"asr": {"tests": [f"test_set_{i}" for i in range(5)], "decoders": ["greedy"]}}
    report_tree.system(tmp_path, random.Random(3), "wav2vec2", "asr", "full", tested)
    system = {"base": "wav2vec2", "task": "asr", "method": "full", "type": "asr"}
    cfg = {"experiment": "wide", "systems": [system], "tasks": tested, "report": {"dpi": 50}}
    assert report_tree.run(tmp_path, cfg) == 0
    lines = (tmp_path / "report/results.txt").read_text().splitlines()
    assert max(map(len, lines)) <= 120
    assert [line.split()[0] for line in lines if line.startswith("full")] == ["full", "full"]
    assert lines[-1].startswith("full") and "5.85 M" in lines[-1] and "5.85 M" not in "".join(lines[:-1])


def test_first_screen_says_in_three_sentences_what_came_out(tree, more):
    text = page(tree)
    summary = text[text.index('<div class="summary">') : text.index("</header>")]
    assert re.findall(r"<p>(\w+ \w+)", summary) == ["20 systems", "In asr", "Compared with"]
    assert "not told apart" in summary and "95\N{NO-BREAK SPACE}% interval" in summary
    more = json.loads((more / "report/report.json").read_text())
    said = more["metrics"]["summary"]
    assert "decoded by greedy and beam4 (asr), tested on in_domain and out_of_domain (asr)" in said[0]
    assert said[1].startswith("In asr on in_domain, ")


def test_what_splits_share_and_what_decoders_ended_is_said(tree):
    text = page(tree)
    assert "<h4>Shared speakers</h4>" in text and "train: voices/train" in text and "spk1, spk7" in text
    assert "In lid, splits of different roles share no speaker." in text
    assert "<h4>Hypotheses that the decoder stopped</h4>" in text and "whisper/asr/base/greedy/test" in text


def test_without_an_overlap_check_nothing_is_said_of_it(tmp_path):
    assert report_tree.run(tmp_path, small(tmp_path)) == 0
    assert "Shared speakers" not in page(tmp_path) and "the decoder stopped" not in page(tmp_path)


@pytest.mark.parametrize("confidence", [0.9, 0.999, None])
def test_plots_and_tables_name_the_confidence_of_the_scores(tmp_path, confidence):
    cfg, path = small(tmp_path), folder(tmp_path, "score", "wav2vec2/asr/full") / "score.json"

    def change(record):
        if confidence is None:
            record["metrics"].update(interval={}, bootstrap=0)
        else:
            record["metrics"]["confidence"] = confidence

    edit(path, change)
    assert report_tree.run(tmp_path, cfg) == 0
    text = page(tmp_path)
    assert "95 %" not in text and "95\N{NO-BREAK SPACE}%" not in text
    if confidence is None:
        assert "No intervals were computed." in text and "None were computed." in text
    else:
        mass = f"{100 * confidence:g}\N{NO-BREAK SPACE}%"
        assert f"Bars are {mass} intervals." in text and f"{mass}<br>interval" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"systems": []}, "systems is empty; give at least one system"),
        ({"systems": [{"base": "a", "task": "b", "method": "c", "type": "asr"}] * 2}, "a/b/c is listed twice"),
        ({"systems": [{"base": "a", "task": "b", "method": "c", "type": "tts"}]}, "'tts' is not valid"),
        ({"titel": "x"}, "unknown key 'titel'"),
        ({"report": {"dpi": 5}}, "cfg.report.dpi is 5; it must be at least 50"),
        ({"tasks": {}}, "tasks: 'asr' is missing; give its tests and decoders"),
        ({"tasks": {"asr": {"tests": [], "decoders": ["greedy"]}}}, "tasks.asr.tests"),
        ({"corpora": {"missing": ["test"]}}, "corpus/missing/test.json does not exist"),
    ],
)
def test_bad_config(tmp_path, capsys, change, message):
    assert report_tree.run(tmp_path, small(tmp_path) | change) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "report").glob("*"))


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        report.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "results.csv" in text and "--root" in text and "score.json" in text
