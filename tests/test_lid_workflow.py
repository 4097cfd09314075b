"""Back ends, pieces, controls and allowed sharing in a config: their jobs, their slices, and what is refused."""

import shutil

import pytest
import yaml

from lowrank_speech.reporting import blocks, confounds, durations, flags
from lowrank_speech.reporting.systems import Result, System, SystemName, read_systems
from lowrank_speech.workflow.config import backed, calibrated_results, fused, pieces, systems
from report_tree import make_tree, manifest
from workflow_config import checked, refused, sliced, wildcards
from workflow_tree import REPOSITORY, tiny_config

TEMPERATURE = {"kind": "temperature"}


def spoken(**task):
    """tiny_config with language recognition alone, on two bases with two methods."""
    config = tiny_config()
    config["systems"] = {"bases": ["wav2vec2", "whisper"], "tasks": ["lid"], "methods": ["full", "lowrank"]}
    config["tasks"]["lid"] |= task
    return config


def backends(**sections):
    return spoken(backends=list(sections)) | {"backends": sections}


def test_a_back_end_has_results_of_every_system_and_a_fusion_beside_its_first():
    config = checked(backends(cal=TEMPERATURE, both={"kind": "fusion", "systems": ["lowrank", "full"]}))
    found = {"/".join(result[:4]) for result in calibrated_results(config)}
    grid = {f"{base}/lid/{method}" for base in ("wav2vec2", "whisper") for method in ("full", "lowrank")}
    assert found == {f"{one}/cal" for one in grid} | {f"{base}/lid/lowrank/both" for base in ("wav2vec2", "whisper")}
    across = {"kind": "fusion", "systems": ["whisper/full", "wav2vec2/full"]}
    config = checked(backends(across=across))
    assert [("/".join(s), backed(config, s)) for s in systems(config) if backed(config, s)] == [
        ("whisper/lid/full", ["across"])
    ]
    slices = sliced(backends(across=across))
    names = wildcards(base="whisper", task="lid", method="full", backend="across")
    assert slices.backend(names).cfg == {
        "backend": {"kind": "fusion", "systems": ["whisper/full", "wav2vec2/full"], "ridge": 0.001},
        "systems": ["whisper/lid/full", "wav2vec2/lid/full"],
        "least": 5,
    }
    assert [one.base for one in fused(config, systems(config)[0], "across")] == ["whisper", "wav2vec2"]


def test_what_does_not_use_them_has_the_slices_of_before():
    plain, more = sliced(spoken()), sliced(backends(cal=TEMPERATURE))
    for result in calibrated_results(more.config):
        known = wildcards(**result._asdict() | {"decoder": "scores"})
        for stage in ("overlap", "train", "decode", "score", "features", "base"):
            assert getattr(plain, stage)(known) == getattr(more, stage)(known)
    row = plain.report().cfg["systems"][0]
    assert "backends" not in row and "pieces" not in plain.report().cfg["tasks"]["lid"]
    assert more.report().cfg["systems"][0]["backends"] == {"cal": "scores"}


def test_pieces_of_a_split():
    test = {"full": {"split": "test"}, "s1": {"split": "test", "seconds": 1, "place": "random"}}
    config = checked(spoken(test=test))
    slices = sliced(spoken(test=test))
    names = {"base": "whisper", "task": "lid", "method": "full", "decoder": "scores"}
    whole, cut = (slices.decode(wildcards(**names, test=one)).cfg for one in ("full", "s1"))
    assert cut == whole | {"cut": {"seconds": 1.0, "place": "random", "shorter": "set-aside", "seed": config["seed"]}}
    assert pieces(config, "lid") == {"full": "babel/test", "s1": "babel/test"}
    assert slices.report().cfg["tasks"]["lid"]["pieces"] == pieces(config, "lid")
    crop = sliced(spoken(segment={"crop": [1, 2]}))
    known = wildcards(**names, test="test")
    assert crop.train(known).cfg["task"]["segment"]["crop"] == [1.0, 2.0]
    assert "crop" not in crop.decode(known).cfg["task"]["segment"]  # only trainings crop


def test_a_control_takes_the_place_of_the_base():
    config = spoken()
    config["methods"] |= {"mean": {"adapt": "none", "control": "mean-logmel"}}
    config["methods"] |= {"mixed": {"adapt": "full", "control": "shuffled-labels"}}
    config["systems"]["methods"] += ["mean", "mixed"]
    checked(config)
    slices = sliced(config)
    names = {"base": "whisper", "task": "lid"}
    assert slices.train(wildcards(**names, method="mean")).cfg.keys() == {"seed", "task", "adapt", "control"}
    mixed, full = (slices.train(wildcards(**names, method=m)).cfg for m in ("mixed", "full"))
    assert mixed == full | {"control": "shuffled-labels", "shuffle": "utterances"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (spoken(backends=["cal"]), "tasks.lid.backends: 'cal' does not exist; none is defined"),
        (backends(scores=TEMPERATURE), "backends.scores: a decoder has this name"),
        (backends(cal={"kind": "temperature", "decoder": "beam"}), "backends.cal.decoder: 'beam' does not exist"),
        (backends(cal={"kind": "fusion", "systems": ["full", "fall"]}), "'fall' does not exist; expected one of"),
        (backends(cal={"kind": "fusion", "systems": ["full", "xlsr/full"]}), "'xlsr' does not exist; expected one of"),
        (backends(cal={"kind": "fusion", "systems": ["full", "full"]}), "name each system once"),
        (backends(cal={"kind": "gaussian", "on": "embeddings"}), "is of kind scores, which writes no embeddings"),
        (backends(cal={"kind": "afine"}), "'afine' is not valid; expected one of: temperature, affine"),
        (spoken(test={"a": {"split": "test", "place": "random"}}), "place: it has no effect without `seconds`"),
        (spoken(allow_shared={"speakers": ["train"]}), "name two or three different roles that may share speakers"),
        (spoken(segment={"crop": [0, 1]}), "its lengths in seconds must be above 0"),
        (
            spoken(channel="gsm"),
            "channel: gsm changes samples, but bases.whisper has stored features (logmel); set bases",
        ),
        (spoken(channel="fm"), "'fm' is not valid; expected one of: narrow, mulaw, gsm, mp3"),
    ],
)
def test_what_is_refused_before_the_first_job(config, said):
    assert said in refused(config)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"adapt": "full", "control": "mean-logmel"}, "the method has adapt: full; write {adapt: none, control: mean"),
        ({"adapt": "full", "shuffle": "speakers"}, "it has no effect without control: shuffled-labels"),
    ],
)
def test_controls_that_are_refused(method, said):
    config = spoken()
    config["methods"]["odd"] = method
    config["systems"]["methods"].append("odd")
    assert said in refused(config)
    config = tiny_config()
    config["methods"]["full"]["control"] = "shuffled-labels"
    assert "only tasks of type lid have controls, but systems.tasks has 'asr'" in refused(config)


def test_recognition_takes_none_of_it():
    for key, value in (
        ("backends", ["cal"]),
        ("allow_shared", {"speakers": ["train", "dev"]}),
        ("channel", "gsm"),
        ("segment", {"crop": [1, 2]}),
        ("test", {"a": {"split": "test", "seconds": 3}}),
    ):
        config = tiny_config() | {"backends": {"cal": TEMPERATURE}}
        config["tasks"]["asr"][key] = value
        assert "only tasks of type lid" in refused(config)


def test_the_experiment_on_voices_names_what_its_splits_share():
    for name in ("voices", "voices_whisper"):
        text = (REPOSITORY / f"workflow/experiments/{name}.yaml").read_text(encoding="utf-8")
        assert yaml.safe_load(text)["tasks"]["lid"]["allow_shared"] == {"speakers": ["train", "dev"]}


# -- the report --------------------------------------------------------------------------------------------------------


def made(method, accuracy, width=0.02, control=None, test="test", seconds=3.0, cost=0.5):
    name = SystemName("base", "lid", method, "lid")
    metrics = {
        "accuracy": accuracy,
        "accuracy_low": accuracy - width,
        "accuracy_high": accuracy + width,
        "act_cprimary": cost,
        "min_cprimary": cost,
        "eer": cost,
        "utterances": 10,
        "speech_seconds": 10 * seconds,
    }
    return Result(name, "scores", test, metrics), {"train": {"cfg": {"control": control}}}


def system(method, *results, control=None):
    return System(
        SystemName("base", "lid", method, "lid"),
        {"adapt": "full"},
        tuple(results),
        manifests={"train": {"cfg": {"control": control}}},
    )


@pytest.mark.parametrize(
    ("control", "width", "said"),
    [
        (0.95, 0.02, "the control is not worse"),
        (0.6, 0.2, "their intervals overlap"),
        (0.85, 0.001, "they are less than 10 points apart"),
        (0.5, 0.02, None),
    ],
)
def test_the_report_warns_of_a_control_near_the_best_system(control, width, said):
    best, worse = made("full", 0.9, width)[0], made("lora", 0.4, width)[0]
    every = [
        system("full", best),
        system("lora", worse),
        system("mean", made("mean", control, width)[0], control="mean-logmel"),
    ]
    found = confounds.near_controls(every)
    assert len(found) == (said is not None)
    if said:
        assert said in found[0] and "the control mean (mean-logmel)" in found[0] and "(full) 90.0 %" in found[0]
    assert every[2].baseline and not every[2].unadapted and not every[0].baseline


def test_a_control_is_also_compared_with_the_best_trained_system():
    zero, one = system("tokens", made("tokens", 0.9)[0]), system("full", made("full", 0.3)[0])
    zero.metrics["adapt"] = "none"
    control = system("mixed", made("mixed", 0.29)[0], control="shuffled-labels")
    (said,) = confounds.near_controls([zero, one, control])
    assert "the best trained system (full) 30.0 %: their intervals overlap" in said
    assert confounds.near_controls([zero, control]) == []


def test_curves_of_cost_against_duration():
    results = [made("full", 0.9, test=t, seconds=s, cost=c)[0] for t, s, c in (("a", 9, 0.1), ("b", 3, 0.4))]
    other = made("full", 0.9, test="other", seconds=1)[0]
    one = system("full", *results, other)
    of = {"lid": {"a": "c/test", "b": "c/test"}}
    (curve,) = durations.curves([one], of)
    assert [(at, r.test) for at, r in curve.points] == [(3.0, "b"), (9.0, "a")]
    assert [row[6] for row in durations.table([one], of).rows] == ["3.0", "9.0"]
    assert durations.table([one], {}) is None
    from lowrank_speech.reporting.plots import png

    assert png(lambda s: durations.figure(s, of), [one], "light", 60).startswith(b"\x89PNG")


def test_a_fusion_costs_what_its_systems_cost_together(tmp_path):
    name = SystemName("whisper", "lid", "full", "lid")
    make_tree(tmp_path)
    inputs = [{"system": f"whisper/lid/{method}", "columns": ["de"]} for method in ("full", "lowrank")]
    metrics = {"backend": {"inputs": inputs}, "warning": "dev is too easy"}
    manifest(tmp_path / "backend" / str(name) / "both" / "backend.json", "backend", metrics, {})
    shutil.copytree(tmp_path / "score" / str(name) / "scores", tmp_path / "score" / str(name) / "both")
    found = read_systems(tmp_path, {name: (["test"], ["scores"])}, {name: {"both": "scores"}})[0]
    alone, both = found.result("test", "scores"), found.result("test", "both")
    other = read_systems(tmp_path, {SystemName("whisper", "lid", "lowrank", "lid"): (["test"], ["scores"])})[0]
    second = other.result("test", "scores")
    assert both.metrics["systems"] == 2 and both.metrics["cllr"] == alone.metrics["cllr"] is not None
    for key in ("parameters_total", "parameters_trained", "rtf"):
        assert both.metrics[key] == pytest.approx(alone.metrics[key] + second.metrics[key])
    assert 0 < both.metrics["reduction"] < second.metrics["reduction"]
    assert flags.flags(both) == [*flags.flags(alone), "back end: dev is too easy"]
    (block,) = blocks.blocks([found])
    rows = {cells[1]: cells for _, cells in block.rows if cells[0] not in ("chance", "majority")}
    assert rows.keys() == {"scores", "both"} and ("Cllr", "bits") in block.titles
    place = block.titles.index(("para-", "meters"))
    assert rows["scores"][place] != rows["both"][place]
