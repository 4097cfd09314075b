"""Parts of the report: units, order of systems, headlines, tables, and permitted imports."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lowrank_speech.errors import UserError
from lowrank_speech.reporting import blocks, data, headline, page, plots, results, units
from lowrank_speech.reporting.comparisons import comparisons, sentence
from lowrank_speech.reporting.headline import headlines
from lowrank_speech.reporting.manifests import read_history, total
from lowrank_speech.reporting.mistakes import mistakes
from lowrank_speech.reporting.systems import COLUMNS, Result, System, SystemName


def make(
    method: str,
    adapt: str = "full",
    task: str = "asr",
    manifests: dict | None = None,
    costs: dict | None = None,
    score: dict | None = None,
    wrong: list[int] | None = None,
    **numbers,
) -> System:
    """A system with one result; ``wrong``: word errors of each utterance, of 10 words."""
    kind = "lid" if task == "lid" else "asr"
    name = SystemName("wav2vec2", task, method, kind)
    known = dict.fromkeys(COLUMNS) | {"adapt": adapt, "method": method, "decoder": "greedy", "test": "test"} | numbers
    score, table = score or {}, None
    if wrong is not None:
        ids = pd.Index([f"u{i}" for i in range(len(wrong))], name="id")
        columns = {"speaker": "", "language": "", "words": 10, "substitutions": wrong, "characters": 50}
        table = pd.DataFrame(columns, index=ids).assign(char_substitutions=wrong)
        table = table.assign(**dict.fromkeys(["deletions", "insertions", "char_deletions", "char_insertions"], 0))
        rate = sum(wrong) / (10 * len(wrong))
        known |= {"wer": rate, "cer": rate / 5, "wer_low": rate / 2, "wer_high": 2 * rate}
        score = {"bootstrap": 400, "confidence": 0.95, "resampled": "utterances"} | score
    result = Result(name, "greedy", "test", known, score, table=table)
    return System(name, known, (result,), manifests={"train": {"cfg": {}}} | (manifests or {}), costs=costs or {})


def other_decoder(system: System, wer: float) -> Result:
    (first,) = system.results
    return replace(first, decoder="bigram", metrics=first.metrics | {"decoder": "bigram", "wer": wer})


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (units.percent, 0.12345, "12.3"),
        (units.percent, None, "–"),
        (units.signed, -0.2393, "−23.9"),
        (units.signed, 0.0132, "+1.3"),
        (units.signed, -0.0001, "0.0"),
        (units.parameters, 315_438_720, "315.4 M"),
        (units.parameters, 6_153_000, "6.15 M"),
        (units.parameters, 129_200, "129.2 k"),
        (units.parameters, 0, "0"),
        (units.memory, 1_376_000_000, "1.38 GB"),
        (units.memory, 920_000_000, "920 MB"),
        (units.duration, 59.96, "1m00s"),
        (units.duration, 185.2, "3m05s"),
        (units.duration, 3599.7, "1h00m"),
        (units.duration, 2 * 3600 + 7 * 60, "2h07m"),
        (units.factor, 0.01234, "0.0123"),
        (units.factor, 0.0, "0.0000"),
        (units.factor, 0.00001234, "1.2e-05"),
        (units.hours, 4500, "1.25 h"),
        (units.hours, 90, "1.5 min"),
        (units.plain, [768, 192], "768 × 192"),
        (units.plain, True, "yes"),
        (units.plain, 0.957031, "0.957"),
    ],
)
def test_units(show, value, text):
    assert show(value) == text


def test_error_and_interval_of_accuracy_are_mirrored():
    (result,) = make("full", task="lid", accuracy=0.9, accuracy_low=0.85, accuracy_high=0.93).results
    assert result.error == pytest.approx(0.1)
    assert result.error_interval == pytest.approx((0.07, 0.15))


def test_lowest_error_is_the_greatest_accuracy():
    systems = make("a", task="lid", accuracy=0.8), make("b", task="lid", accuracy=0.9)
    worse, better = (blocks.Row(system, "greedy") for system in systems)
    assert blocks.lowest_errors([worse, better], "test") == [better]
    assert blocks.lowest_errors([blocks.Row(make("c", task="lid"), "greedy")], "test") == []


@pytest.mark.parametrize(("value", "count"), [(None, None), ({}, 0), ({"a": 1, "b": 2}, 3), ({"a": "x"}, None)])
def test_counts_by_reason_are_summed(value, count):
    assert total(value) == count


def test_history_names_the_bad_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_history(path) == []
    path.write_text('{"epoch": 1, "loss": 2.0}\n\n{"epo')
    with pytest.raises(UserError, match="line 3"):
        read_history(path)


def test_headline_compares_with_dense_full_finetuning():
    common = {"reduction": 0.0, "seconds_train": 100.0, "peak_bytes": 10**9}
    full = make("full", wrong=[1] * 40, parameters_total=100, parameters_trained=90, **common)
    # Listed before the dense one, and still not the reference.
    small = make(
        "lowrank",
        wrong=[0, 2] * 19 + [1, 3],
        parameters_total=76,
        parameters_trained=45,
        **common | {"reduction": 0.24, "seconds_train": None},
        manifests={"factorise": {"metrics": {"layers": []}}},
    )
    lora = make("lora", "lora", wrong=[2] * 40, parameters_total=100, parameters_trained=1, **common)
    bare = make("bare", "lora", wer=0.3)
    base = make("base", "none", wer=0.9)
    systems = [base, small, full, lora, bare]
    (found,) = headlines(systems)
    # A difference that a paired test does not tell apart is no reason to call one of them the best.
    assert found.lead.startswith("full has the lowest error, WER 10.0") and "not told apart from lowrank" in found.lead
    assert "before adaptation: WER 90.0" in found.lead
    tied, certain, untested = found.comparison.rows
    assert tied[:2] == ("lowrank", "+0.5") and tied[4:] == ("−24.0", "−50.0", "0.0", "–")
    low, high = (float(end.replace("−", "-")) for end in tied[2].split("…"))
    assert low < 0 < high and float(tied[3]) > 0.05
    # Every resample has the same difference: 400 of them give the least p-value.
    assert certain == ("lora", "+10.0", "10.0…10.0", "0.005", "0.0", "−98.9", "0.0", "0.0")
    assert untested[:4] == ("bare", "+20.0", "–", "–")
    assert found.comparison.note == "Not tested: wav2vec2/asr/bare/greedy/test has no utterances.tsv; score it again."
    said = [sentence(one, False).replace("\N{NO-BREAK SPACE}", " ") for one in comparisons(systems)]
    assert said[0].startswith("lowrank is 0.5 points of WER worse than full (95 % −") and said[0].endswith(
        ": not told apart"
    )
    assert said[1] == "lora is 10.0 points of WER worse than full (95 % 10.0…10.0, p = 0.005)"
    assert said[2].startswith(
        "bare is worse than full, not tested: wav2vec2/asr/bare/greedy/test has no utterances.tsv"
    )
    # Another reference, by name.
    (other,) = headlines(systems, "lora")
    assert [row[0] for row in other.comparison.rows] == ["lowrank", "full", "bare"]
    assert other.comparison.rows[1][1:4] == ("−10.0", "−10.0…−10.0", "0.005")


def test_summary_is_honest_about_differences():
    full = make("full", wrong=[1] * 40, reduction=0.0, score={"confidence": 0.9})
    ninety = {"confidence": 0.9}
    near = make("lowrank", wrong=[0, 2] * 19 + [1, 3], reduction=0.24, score=ninety)
    worse = make("lora", "lora", wrong=[2] * 40, reduction=0.0, trained_share=0.021, score=ninety)
    better = make("distilled", wrong=[0] * 39 + [1], reduction=0.3, score=ninety)
    bare = make("bare", wer=0.3, reduction=0.0)
    what, best, methods = headline.summary([make("base", "none", wer=0.9), full, near, worse, better, bare])
    assert what == (
        "6 systems are compared: 6 methods (base, full, lowrank, lora, distilled, bare) on the base wav2vec2, for "
        "speech recognition (asr)."
    )
    assert best.replace("\N{NO-BREAK SPACE}", " ") == (
        "In asr, distilled on wav2vec2 has the lowest error: WER 0.2 % (90 % interval 0.1…0.5); by a paired test it is "
        "better than 3 of 3 other adapted systems; without a test, 0 of 1 other adapted system have the same error."
    )
    assert methods.startswith(
        "Compared with full fine-tuning of the dense model (one comparison for each method), lowrank "
        "(24\N{NO-BREAK SPACE}% fewer parameters) is 0.5 points of WER worse (90\N{NO-BREAK SPACE}% −"
    )
    assert (
        "so they are not told apart; lora (2.1\N{NO-BREAK SPACE}% of the parameters trained) is 10.0 points" in methods
    )
    assert "fewer parameters) is 9.8 points of WER better (90\N{NO-BREAK SPACE}% 9.2…10.0, p = 0.005);" in methods
    assert methods.endswith("; bare is worse (not tested) in 1.")
    assert "(90\N{NO-BREAK SPACE}% interval 5.0…20.0)" in headline.summary([full])[1]
    # A test set of one speaker for each language has no intervals; the systems are equal, not "told apart".
    equal = [make(name, task="lid", accuracy=0.5) for name in ("full", "seed2")]
    assert headline.summary([*equal, make("lora", task="lid", accuracy=0.4)])[1].replace("\N{NO-BREAK SPACE}", " ") == (
        "In lid, full on wav2vec2 has the lowest error: accuracy 50.0 %; without a test, 1 of 2 other adapted systems "
        "has the same error."
    )
    # A base that was better before it was adapted is not passed over.
    spoilt = [make("tokens", "none", wer=0.2), make("full", wer=0.4)]
    text = headline.summary(spoilt)[1].replace("\N{NO-BREAK SPACE}", " ")
    assert "full on wav2vec2 has the lowest error: WER 40.0 %" in text
    assert "; without adaptation tokens on wav2vec2 is better: WER 20.0 %" in text
    assert "; the base before adaptation is better: WER 20.0" in headlines(spoilt)[0].lead.replace("\xa0", " ")
    # With several decoders, systems are compared with the first one, and the summary says so.
    named = [make("full", wer=0.4), make("mmi", wer=0.5)]
    several = [
        replace(s, results=(*s.results, other_decoder(s, wer))) for s, wer in zip(named, (0.3, 0.2), strict=True)
    ]
    best, methods = (text.replace("\N{NO-BREAK SPACE}", " ") for text in headline.summary(several)[1:])
    assert best.startswith("In asr, full on wav2vec2 with the decoder greedy has the lowest error: WER 40.0 %")
    assert best.endswith("; the lowest with any decoder has mmi on wav2vec2 with the decoder bigram: WER 20.0 %.")
    assert "of the dense model, with the decoder greedy (one comparison" in methods
    (card,) = headlines(several)
    assert card.lead.startswith("full is best with the decoder greedy: ")
    # There is a dense model, but nothing to compare it with.
    assert headline.summary([make("full", wer=0.4, reduction=0.0)])[2].startswith("No other adapted system was scored")
    assert headline.summary([make("base", "none", wer=0.9)])[1:] == [
        "No adapted system was scored.",
        "No dense model was fully fine-tuned, so there is no reference to compare the methods with.",
    ]


def test_headline_without_a_reference_compares_nothing():
    (found,) = headlines([make("lora", "lora", wer=0.2)])
    assert found.comparison is None and "lora is best" in found.lead
    (found,) = headlines([make("full")])
    assert found.lead == "Nothing was scored."


def test_confidence_of_the_score_is_in_the_title():
    system = make("full", wer=0.1, wer_low=0.0, wer_high=0.2, score={"confidence": 0.9})
    (block,) = blocks.blocks([system])
    assert ("90\N{NO-BREAK SPACE}%", "interval") in block.titles


def test_counts_stay_whole_numbers_beside_unknown_ones(tmp_path):
    results.write_results(tmp_path, "t", [make("a", wer=0.1, words=354), make("b", wer=0.2)])
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert ",354," in lines[1] and "354.0" not in lines[1]
    assert lines[0].split(",") == list(COLUMNS)


def test_set_aside_groups_equal_lists(tmp_path):
    text = "id\treason\tdetail\n" + "".join(f'u{i}\ttoo long\t{i} labels "\n' for i in range(5))
    systems = [make(method) for method in ("full", "lora", "base")]
    for system in systems[:2]:
        path = tmp_path / f"train/wav2vec2/asr/{system.name.method}/set_aside.tsv"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    (row,) = data.set_aside_table(tmp_path, [], systems).rows
    assert row[0] == "train wav2vec2/asr/full and 1 more" and row[1] == "too long" and row[3] == "5"
    assert row[2] == 'u0 (0 labels "); u1 (1 labels "); u2 (2 labels ") …'


def test_layers_of_a_method_stand_once():
    layers = [{"rank": 4, "name": "a.b", "energy": 0.5, "spectrum": [1.0]}, {"name": "c", "rank": 8, "extra": None}]
    factorise = {"factorise": {"metrics": {"layers": layers, "left_dense": {"d": "the rank is too high"}}}}
    systems = [make("low", task=task, manifests=factorise) for task in ("asr", "lid")]
    (table,) = data.layer_tables(systems)
    assert table.title == "wav2vec2, low: 2 layers"
    assert table.header == ("name", "rank", "energy", "extra")
    assert table.rows == (("a.b", "4", "0.5", "–"), ("c", "8", "–", "–"))
    assert table.note == "d stays dense: the rank is too high"


def test_what_to_expect_of_a_cut_stands_once_for_all_methods_that_share_it():
    metrics = {"reduction": 0.24, "divergence": {"loss": 0.7, "agreement": 0.81}, "warnings": ["needs fine-tuning"]}
    cut = {"factorise": {"metrics": metrics}}
    lossless = {"factorise": {"metrics": {"reduction": 0.1, "divergence": {"loss": 0.02, "agreement": None}}}}
    systems = [make("full"), make("low", manifests=cut), make("other", manifests=lossless)]
    table = data.cut_table([*systems, make("low", task="lid", manifests=cut)])
    assert table.rows == (
        ("wav2vec2", "low", "needs fine-tuning", "24.0", "0.700", "81.0"),
        ("wav2vec2", "other", "-", "10.0", "0.020", "–"),
    )
    assert data.cut_table(systems[:1]) is None


def test_confusion_matrix_has_its_sums():
    system = make("full", task="lid", score={"languages": ["de", "en"], "confusion": [[3, 1.5], [0, 4]]})
    ((_, (table,)),) = mistakes([system], 5)
    assert table.rows == (("de", "3", "1.5", "4.5"), ("en", "·", "4", "4"))
    assert mistakes([make("full", task="lid")], 5) == []


def test_colours_are_stable_and_grey_for_the_unadapted():
    systems = [make("base", "none"), *(make(f"m{i}") for i in range(10))]
    colours = plots.colours(systems)
    assert colours["base"] == plots.UNADAPTED
    assert len(set(list(colours.values())[1:9])) == 8  # distinct as far as the palette goes


def test_memory_note_names_the_device():
    cpu, cuda = make("a", device="cpu"), make("b", device="cuda:0")
    notes = [dict(page.measured(systems))["peak memory"] for systems in ([cpu], [cuda], [cpu, cuda])]
    assert "resident" in notes[0] and "CUDA" not in notes[0]
    assert "CUDA" in notes[1] and "resident" not in notes[1]
    assert "CUDA" in notes[2] and "resident" in notes[2]


def test_versions_that_differ_stand_side_by_side():
    one = make("a", costs={"train": {"versions": {"torch": "2.8"}}})
    two = make("b", costs={"train": {"versions": {"torch": "2.9"}}})
    assert page.versions([one, two, one]) == [("torch", "2.8, 2.9")]


def test_reporting_imports_no_torch():
    folder = Path(page.__file__).parent
    modules = ", ".join(f"lowrank_speech.reporting.{p.stem}" for p in folder.glob("[a-z]*.py"))
    code = f"import sys, lowrank_speech.stages.report, {modules}; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'torch'" not in loaded and "'transformers'" not in loaded and "'lhotse'" not in loaded
