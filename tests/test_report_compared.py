"""The report's comparisons: paired tests on the tree, degenerate results, seeds, where points stand, provenance."""

import csv
import json
import random
import re

import pytest

import report_tree
from lowrank_speech import cli
from lowrank_speech.reporting import flags, placing, plots, provenance, seeds
from lowrank_speech.scoring import utterances
from test_report import edit, folder, page, rows, small
from test_report_parts import make


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """full, lowrank and lora of one base, small."""
    root = tmp_path_factory.mktemp("three")
    cfg = small(root)
    for method in ("lowrank", "lora"):
        cfg["systems"] += small(root, method=method)["systems"]
    assert report_tree.run(root, cfg) == 0
    return root


def test_every_system_is_compared_with_dense_full_finetuning(three):
    table = read(three / "report/comparisons.csv")
    assert [(r["method"], r["against"], r["metric"]) for r in table] == [
        (method, "full", metric) for method in ("lowrank", "lora") for metric in ("wer", "cer")
    ]
    known = {row["method"]: row for row in rows(three)}
    for row in table:
        mine, theirs = (float(known[name][row["metric"]]) for name in (row["method"], "full"))
        assert float(row["difference"]) == pytest.approx(mine - theirs)
        assert (row["units"], row["resampled"], row["bootstrap"], row["not_tested"]) == ("60", "utterances", "100", "")
        low, high = float(row["low"]), float(row["high"])
        assert low < float(row["difference"]) < high
        assert (low > 0 or high < 0) == (float(row["p"]) <= 0.05)
    text = (three / "report/results.txt").read_text().replace("\n  ", " ")
    for method in ("lowrank", "lora"):
        found = re.search(
            rf"^{method} is \d+\.\d points of WER (worse|better) than full \(95.% .*, p = .*\)", text, re.M
        )
        assert found and found[0] in text
    assert "<h3>Paired comparisons</h3>" in page(three) and "asr on wav2vec2: greedy, test: lora is" in page(three)
    assert "paired tests</dt>" in page(three) and "overlap; " not in page(three)


def test_another_reference_and_its_name(tmp_path, capsys):
    cfg = small(tmp_path)
    cfg["systems"] += small(tmp_path, method="lora")["systems"]
    cfg["report"] = {"dpi": 50, "against": "lora"}
    assert report_tree.run(tmp_path, cfg) == 0
    assert [r["method"] for r in read(tmp_path / "report/comparisons.csv")] == ["full", "full"]
    cfg["report"]["against"] = "lara"
    assert report_tree.run(tmp_path, cfg) == 2
    assert (
        "report.against: 'lara' is not a method of the systems; expected one of: full, lora" in capsys.readouterr().err
    )


def test_different_utterances_are_not_compared(tmp_path, capsys):
    cfg = small(tmp_path)
    cfg["systems"] += small(tmp_path, method="lora")["systems"]
    path = folder(tmp_path, "score", "wav2vec2/asr/lora") / utterances.NAME
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    assert report_tree.run(tmp_path, cfg) == 0
    said = capsys.readouterr().err
    assert "1 of 1 comparisons have no paired test: wav2vec2/asr/full/greedy/test decoded 2 utterances" in said
    assert "utt058" in said
    (row,) = read(tmp_path / "report/comparisons.csv")
    assert row["p"] == row["low"] == "" and "&#39;utt058&#39;, &#39;utt059&#39;" in page(tmp_path)
    path.write_text("id\twords\n")
    assert report_tree.run(tmp_path, cfg) == 2
    assert f"{path} has no column 'speaker'" in capsys.readouterr().err


def test_ties_are_bold(three):
    """The marked rows are those whose test against the lowest error is not significant."""
    table = page(three)
    bold = re.findall(r'<th scope="row" class="text best">(\w+)', table)
    errors = {row["method"]: float(row["wer"]) for row in rows(three)}
    best = min(errors, key=errors.get)
    tested = {r["method"]: float(r["p"]) for r in read(three / "report/comparisons.csv") if r["metric"] == "wer"}
    assert best == "full" and set(bold) == {best} | {method for method, p in tested.items() if p > 0.05}


# -- degenerate results


@pytest.mark.parametrize(
    ("numbers", "stopped", "found"),
    [
        ({"wer": 0.999}, {}, []),
        ({"wer": 1.0}, {}, ["WER of exactly 100 %"]),
        ({"wer": 5.52}, {}, ["WER over 100 %: 552.0 %"]),
        ({"wer": 0.3, "empty_hypotheses": 9}, {}, []),
        ({"wer": 0.3, "empty_hypotheses": 10}, {}, ["10 of 200 hypotheses are empty"]),
        ({"wer": 0.3}, {"loop": 12, "bound": 1}, ["12 of 200 hypotheses are stopped by loops"]),
        ({"wer": 0.3}, {"bound": 50}, ["50 of 200 hypotheses are stopped by their token limit"]),
    ],
)
def test_degenerate_recognisers(numbers, stopped, found):
    system = make("m", utterances=200, **numbers)
    system.results[0].manifests["decode"] = {"metrics": {"stopped": stopped}}
    assert flags.flags(system.results[0]) == found
    assert (flags.table([system]) is None) == (not found)


def test_a_language_recogniser_with_one_answer():
    score = {"languages": ["de", "en"], "confusion": [[0, 5], [0, 4]]}
    assert flags.flags(make("m", task="lid", score=score).results[0]) == ["every segment is recognised as en"]
    score["confusion"][0] = [1, 4]
    assert flags.flags(make("m", task="lid", score=score).results[0]) == []


def test_degenerate_systems_are_marked(tmp_path, capsys):
    cfg = small(tmp_path)
    edit(folder(tmp_path, "score", "wav2vec2/asr/full") / "score.json", lambda r: r["metrics"].update(wer=5.52))
    assert report_tree.run(tmp_path, cfg) == 0
    assert "wav2vec2/asr/full/greedy/test is degenerate: WER over 100 %: 552.0 %" in capsys.readouterr().err
    text = (tmp_path / "report/results.txt").read_text()
    assert "\nfull †" in text and "\n† wav2vec2/asr/full/greedy/test: WER over 100 %" in text
    assert "<h4>Degenerate results</h4>" in page(tmp_path)


# -- seeds


def seeded(root, method: str, seed: int, **cfg) -> dict:
    """A copy of `full` under another name and seed, with its own errors."""
    rng = random.Random(seed)
    report_tree.METHODS[method] = report_tree.METHODS["full"]
    try:
        report_tree.system(root, rng, "wav2vec2", "asr", method)
    finally:
        del report_tree.METHODS[method]
    edit(
        root / f"train/wav2vec2/asr/{method}/train.json",
        lambda r: (r.update(seed=seed), r["cfg"].update(seed=seed, **cfg)),
    )
    return {"base": "wav2vec2", "task": "asr", "method": method, "type": "asr"}


def test_means_over_methods_that_differ_only_in_the_seed(tmp_path):
    cfg = small(tmp_path)
    cfg["systems"] += [seeded(tmp_path, f"full_{seed}", seed) for seed in (2, 5)]
    cfg["systems"] += [
        seeded(tmp_path, "other_lr", 7, training={"epochs": 8, "lr": 1e-3}),
        seeded(tmp_path, "again", 2),
    ]
    assert report_tree.run(tmp_path, cfg) == 0
    values = [float(row["wer"]) for row in rows(tmp_path) if row["method"] in ("full", "full_2", "full_5")]
    wer, cer = read(tmp_path / "report/seeds.csv")
    assert (wer["methods"], wer["seeds"], wer["systems"], cer["metric"]) == (
        "full, full_2, full_5",
        "1, 2, 5",
        "3",
        "cer",
    )
    mean = sum(values) / 3
    assert float(wer["mean"]) == pytest.approx(mean)
    assert float(wer["deviation"]) == pytest.approx((sum((v - mean) ** 2 for v in values) / 2) ** 0.5)
    assert (float(wer["lowest"]), float(wer["highest"])) == (min(values), max(values))
    text = (tmp_path / "report/results.txt").read_text()
    assert f"3 seeds of full, full_2, full_5 (greedy, test): WER % {100 * mean:.1f} ±" in text
    assert "<h4>Over seeds</h4>" in page(tmp_path)


def test_without_seeds_there_is_no_such_table(three):
    assert read(three / "report/seeds.csv") == [] and "Over seeds" not in page(three)


def test_other_low_rank_models_are_other_systems():
    """They have the same settings of training, and the seed is not all that differs."""
    train = {"cfg": {"adapt": "full", "seed": 1}, "seed": 1}
    other = {"cfg": {"adapt": "full", "seed": 2}, "seed": 2}
    one, two = make("full", manifests={"train": train}), make("s2", manifests={"train": other})
    assert [[s.name.method for s in group] for group in seeds.twins([one, two])] == [["full", "s2"]]
    name = two.name.__class__("wav2vec2", "asr", "s2", "asr", "rank8-1")
    low = two.__class__(name, two.metrics, two.results, manifests=two.manifests)
    assert seeds.twins([one, low]) == []


# -- plots


def test_an_outlier_leaves_the_axis():
    errors = [12.0, 14.0, 13.0, 552.0]
    assert placing.ceiling(errors, [15.0, 17.0, 16.0, 600.0]) == pytest.approx(1.25 * 17)
    assert placing.ceiling([12.0, 14.0, 30.0, 35.0], [15.0, 17.0, 33.0, 38.0]) is None
    assert placing.ceiling([5.0], [6.0]) is None and placing.ceiling([], []) is None
    assert placing.ceiling([0.0, 0.0, 50.0], [0.0, 0.0, 60.0]) is None  # no scale to speak of
    # Half of the systems are no outliers.
    assert placing.ceiling([10.0, 11.0, 80.0, 90.0], [12.0, 13.0, 85.0, 95.0]) is None


def test_points_of_equal_size_stand_side_by_side():
    shifts = placing.offsets([100, 76, 100, 100.5, 76])
    assert shifts[1] < shifts[4] and shifts[0] < shifts[2] < shifts[3]
    assert sum(shifts) == pytest.approx(0) and placing.offsets([5, 50]) == [0, 0] and placing.offsets([]) == []
    many = placing.offsets([1.0] * 30)
    assert max(many) - min(many) <= placing.WIDEST + 1e-9 and len(set(many)) == 30


def test_axes_of_figures():
    outlier = make("bad", parameters_total=10**6, wer=5.52, wer_low=5.0, wer_high=6.0)
    systems = [make(f"m{i}", parameters_total=10**6, wer=0.1 + 0.01 * i, wer_low=0.05, wer_high=0.2) for i in range(4)]
    figure = plots.error_figure([*systems, outlier])
    (axes,) = (a for a in figure.axes if a.axison)
    assert axes.get_ylim() == pytest.approx((0, 25)) and [text.get_text() for text in axes.texts] == ["552"]
    for epochs in (1, 2, 5):
        history = [{"epoch": e, "loss": 1.0, "dev_metric": 0.5} for e in range(1, epochs + 1)]
        trained = make("m").__class__(make("m").name, make("m").metrics, (), history=history, manifests={"train": {}})
        (top, below) = (a for a in plots.curves_figure([trained]).axes if a.axison)
        ticks = [tick for tick in below.get_xticks() if below.get_xlim()[0] <= tick <= below.get_xlim()[1]]
        assert ticks and all(tick == int(tick) for tick in ticks)
        assert below.get_ylabel() == "dev: token errors (%)" and top.get_ylabel() == "training loss"


@pytest.mark.parametrize(
    ("task", "family", "said"),
    [
        ("asr", "wav2vec2", "dev: token errors (%)"),
        ("asr", "whisper", "teacher-forced"),
        ("lid", "whisper", "languages"),
    ],
)
def test_the_error_on_dev_has_its_name(task, family, said):
    system = make("m", task=task, manifests={"base": {"cfg": {"family": family}, "metrics": {}}})
    assert said in plots.dev_error(system)


# -- provenance


def test_provenance(three):
    text = page(three)
    for what in ("runs", "commit of this report", "normaliser of scoring", "code of train", "code of score", "hosts"):
        assert f"<dt>{what}</dt>" in text
    assert re.search(r"<dt>runs</dt><dd>20\d\d-\d\d-\d\d", text) and "<dd>c0de</dd>" in text
    assert "node1" in text and "<dd>none</dd>" in text


def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    assert re.fullmatch(r"[0-9a-f]{12}(, with changes.*)?|unknown", provenance.commit())
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "p.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() == "unknown"


def test_settings_of_corpora_and_window_of_bases_are_shown(tmp_path):
    cfg = small(tmp_path)
    report_tree.corpus(tmp_path)
    metrics = {"source": "openai/whisper-base", "window": 10.0, "parameters": 10**6}
    report_tree.manifest(tmp_path / "base/wav2vec2/base.json", "base", metrics, {"family": "whisper", "window": 10.0})
    assert report_tree.run(tmp_path, cfg) == 0
    text = page(tmp_path)
    assert "<td>10 s</td>" in text or ">10 s<" in text
    assert "corpus: voices/dev, voices/test, voices/train" in text and "base: wav2vec2" in text
    assert "Teacher-forced: the share of tokens" in text


def test_tables_say_that_they_scroll(three):
    text = page(three)
    assert (
        text.count("<table") == text.count('<div class="scroll" tabindex="0"><table')
        and "background-attachment" in text
    )


# -- the command


def call(capsys, *words):
    with pytest.raises(SystemExit) as end:
        cli.main(list(map(str, words)))
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


def test_compare_any_two(three, capsys):
    code, out, _ = call(capsys, "compare", three, "wav2vec2/asr/lora", "wav2vec2/asr/full", "--json")
    found = json.loads(out)["greedy/test"]
    assert code == 0 and set(found) == {"wer", "cer"}
    for row in read(three / "report/comparisons.csv"):
        if row["method"] == "lora":
            assert found[row["metric"]]["difference"] == float(row["difference"])
            assert found[row["metric"]]["p"] == float(row["p"])
            assert found[row["metric"]]["interval"] == [float(row["low"]), float(row["high"])]
    one, other = "wav2vec2/asr/lora/greedy/test", three / "score/wav2vec2/asr/full/greedy/test"
    code, out, _ = call(capsys, "compare", three, one, other, "--bootstrap", 500, "--confidence", 0.9, "--seed", 3)
    lines = out.splitlines()
    assert code == 0 and lines[2] == "greedy/test" and "90% interval" in lines[3]
    assert lines[4].startswith("%WER") and lines[-1] == "(500 resamples of 60 utterances, 60 utterances)"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wav2vec2/asr/lara", "wav2vec2/asr/full"], "expected base/task/method, such as: wav2vec2/asr/full, wav2vec2"),
        (["wav2vec2/asr", "wav2vec2/asr/full"], "wav2vec2/asr was not scored below"),
        (["wav2vec2/asr/lora/beam", "wav2vec2/asr/full"], "was not scored below"),
        (["wav2vec2/asr/lora", "wav2vec2/asr/full", "--confidence", "2"], "confidence is 2.0; it must be below 1"),
        (["wav2vec2/asr/lora", "wav2vec2/asr/full", "--resample", "speakers"], "needs a map from utterance to speaker"),
    ],
)
def test_compare_names_what_is_wrong(three, capsys, words, message):
    code, out, err = call(capsys, "compare", three, *words)
    assert code == 2 and not out and message in err and err.startswith("error: ") and err.count("\n") == 1


def test_compare_refuses_other_utterances_and_other_folders(tmp_path, capsys):
    code, _, err = call(capsys, "compare", tmp_path / "none", "a/b/c", "a/b/d")
    assert code == 2 and "none does not exist; give the folder of an experiment" in err
    for method in ("full", "lora"):
        small(tmp_path, method=method)
    path = folder(tmp_path, "score", "wav2vec2/asr/lora") / utterances.NAME
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines[2:]]))
    code, _, err = call(capsys, "compare", tmp_path, "wav2vec2/asr/lora", "wav2vec2/asr/full")
    assert code == 2 and "wav2vec2/asr/full/greedy/test decoded 1 utterances that" in err and "'utt000'" in err
    path.unlink()
    code, _, err = call(capsys, "compare", tmp_path, "wav2vec2/asr/lora", "wav2vec2/asr/full")
    assert code == 2 and f"{path} does not exist; run the stage score again" in err
