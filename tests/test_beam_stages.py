"""The stages decode and tune with the decoders beam and align, on emissions of a tiny model; the tuning's grid."""

import json
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from lowrank_speech.decoding import tuning
from lowrank_speech.decoding.base import Hypothesis
from lowrank_speech.decoding.ctc import align, beam
from lowrank_speech.errors import UserError
from lowrank_speech.scoring import asr, files
from lowrank_speech.stages import decode, emissions, score, tune
from lowrank_speech.workflow.config import results
from stage_world import decode_with, done, hypotheses, make_features, refused, utterance
from workflow_config import SCHEMA, checked, edited, sliced, wildcards
from workflow_config import refused as config_refused
from workflow_tree import Tree, tiny_config


@pytest.fixture(scope="module")
def stored(world, systems, tmp_path_factory):
    """Emissions of the dev set under the wav2vec 2.0 system."""
    folder = tmp_path_factory.mktemp("emissions")
    paths = {"model": systems["wav2vec2", "asr"].model, "cuts": world.features["wav2vec2"] / "dev.jsonl.gz"}
    done(emissions, {}, folder / "emissions.json", out=folder, **paths)
    return folder


@pytest.fixture
def model(monkeypatch):
    """A language model of words, in place of the folder of the stage lm."""
    from tiny_ctc import Bigrams

    found = Bigrams(["ab", "cd", "dd"])
    monkeypatch.setattr(Bigrams, "check_lang", lambda *_: None)
    monkeypatch.setattr("lowrank_speech.decoding.resources._loaded", lambda name, folder: found)
    return found


def inputs(world, stored, cuts=None):
    return {
        "emissions": stored,
        "cuts": cuts or world.features["wav2vec2"] / "dev.jsonl.gz",
        "lang": world.lang["wav2vec2"],
    }


def cfg(kind, **keys):
    return {"task": {"type": "asr"}, "decoder": {"kind": kind, **keys}}


def test_beam_1_is_the_greedy_decoder(world, systems, stored, tmp_path):
    cuts = world.features["wav2vec2"] / "dev.jsonl.gz"
    decode_with(world, systems, "wav2vec2", "asr", tmp_path / "greedy", cuts=cuts)
    done(decode, cfg("beam", beam=1), tmp_path / "b/decode.json", out=tmp_path / "b", **inputs(world, stored))
    assert (tmp_path / "b/hyp.txt").read_bytes() == (tmp_path / "greedy/hyp.txt").read_bytes()
    for one, other in zip(hypotheses(tmp_path / "greedy"), hypotheses(tmp_path / "b"), strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)


def test_words_of_beam_and_align_have_times_within_the_utterance(world, stored, tmp_path):
    for kind in ("beam", "align"):
        out = tmp_path / kind
        done(decode, cfg(kind), out / "decode.json", out=out, **inputs(world, stored))
        seconds = {cut.id: cut.duration for cut in world.cuts["dev"]}
        for row in hypotheses(out):
            words = row.get("words", [])
            assert [word["text"] for word in words] == row["text"].split()
            times = [time for word in words for time in (word["start"], word["end"])]
            assert times == sorted(times) and all(0 <= time <= seconds[row["id"]] + 1e-3 for time in times)
            assert all(word["start"] < word["end"] and word["score"] <= 0 for word in words)
        if kind == "align":
            assert (out / "hyp.txt").read_bytes() == (out / "ref.txt").read_bytes()


def test_what_cannot_be_aligned_is_set_aside_with_the_reason(world, systems, tmp_path):
    long = utterance(tmp_path, "x-long", "abcd" * 30, "de", seconds=0.3)
    cuts = make_features(world, "wav2vec2", [*world.cuts["test"], long], tmp_path, "test")
    paths = {"model": systems["wav2vec2", "asr"].model, "cuts": cuts}
    done(emissions, {}, tmp_path / "e/emissions.json", out=tmp_path / "e", **paths)
    record = done(
        decode, cfg("align"), tmp_path / "a/decode.json", out=tmp_path / "a", **inputs(world, tmp_path / "e", cuts)
    )
    assert record["metrics"]["utterances"] == 8 and record["metrics"]["set_aside"] == {align.TOO_SHORT: 1}
    row = (tmp_path / "a/set_aside.tsv").read_text().splitlines()[1].split("\t")
    assert row[:2] == ["x-long", align.TOO_SHORT] and row[2].endswith("the 120 tokens need 120")
    assert "x-long" not in (tmp_path / "a/speakers.tsv").read_text()


def test_nothing_left_is_an_empty_hypothesis_that_is_counted(world, stored, tmp_path, capsys):
    shutil.copytree(stored, tmp_path / "e")
    with h5py.File(tmp_path / "e/emissions.h5", "r+") as file:
        file["dev-de1"][:] = -np.inf
    record = done(decode, cfg("beam"), tmp_path / "b/decode.json", out=tmp_path / "b", **inputs(world, tmp_path / "e"))
    (lost,) = [row for row in hypotheses(tmp_path / "b") if "stopped" in row]
    assert lost == {"id": "dev-de1", "text": "", "score": None, "stopped": "nothing"}
    assert record["metrics"]["stopped"] == {"nothing": 1} and record["metrics"]["utterances"] == 8
    assert "nothing survived the beam" in capsys.readouterr().err
    record = done(decode, cfg("align"), tmp_path / "a/decode.json", out=tmp_path / "a", **inputs(world, tmp_path / "e"))
    assert record["metrics"]["set_aside"] == {align.IMPOSSIBLE: 1}


def test_a_language_model_has_to_be_given_and_named(world, stored, tmp_path, capsys):
    end = {"out": tmp_path / "out", **inputs(world, stored)}
    message = "the decoder beam reads the lm 'words'; give the folder of the stage lm as --lm"
    refused(capsys, message, decode, cfg("beam", lm="words"), tmp_path / "m.json", **end)
    message = f"the decoder beam reads no lm, but --lm is {stored}; remove it"
    refused(capsys, message, decode, cfg("beam"), tmp_path / "m.json", lm=stored, **end)
    refused(capsys, "has no lm.json", decode, cfg("beam", lm="words"), tmp_path / "m.json", lm=stored, **end)


GRID = {"lm_weight": [2.0, 0.0, 0.5], "insertion": [0.0, -1.0]}


def test_tuning_finds_the_point_with_the_lowest_error_and_decode_takes_it(world, stored, model, tmp_path):
    keys = {"lm": "w", "beam": 20}
    paths = inputs(world, stored) | {"lm": stored}
    record = done(tune, {**cfg("beam", **keys), "tune": GRID}, tmp_path / "tune.json", **paths)
    assert record["outputs"] == {} and record["cfg"]["tune"] == GRID
    points = {(point["insertion"], point["lm_weight"]): point for point in record["metrics"]["points"]}
    assert list(points) == [(i, w) for i in (-1.0, 0.0) for w in (0.0, 0.5, 2.0)]
    for (insertion, weight), point in points.items():
        out = tmp_path / f"{insertion}{weight}"
        given = cfg("beam", **keys, lm_weight=weight, insertion=insertion)
        done(decode, given, out / "decode.json", out=out, **paths)
        pairs = asr.pair(files.read_text(out / "ref.txt"), files.read_text(out / "hyp.txt"))
        counts = [asr.count(*pair) for pair in pairs.values()]
        assert point["errors"] == sum(sum(wrong) for _, *wrong in counts)
        assert point["wer"] == point["errors"] / sum(n for n, *_ in counts)
    fewest = min(point["errors"] for point in points.values())
    first = next(point for point in record["metrics"]["points"] if point["errors"] == fewest)
    assert record["metrics"]["best"] == {name: first[name] for name in GRID}
    assert record["metrics"]["wer"] == first["wer"]
    tuned = done(
        decode,
        cfg("beam", **keys),
        tmp_path / "d/decode.json",
        out=tmp_path / "d",
        **paths,
        tune=tmp_path / "tune.json",
    )
    best = record["metrics"]["best"]
    assert tuned["metrics"]["tuned"] == best
    assert {name: tuned["cfg"]["decoder"][name] for name in best} == best
    assert (tmp_path / "d/hyp.txt").read_bytes() == (
        tmp_path / f"{best['insertion']}{best['lm_weight']}/hyp.txt"
    ).read_bytes()


def test_whisper_is_tuned_and_words_are_compared_as_score_compares_them(world, systems, tmp_path):
    paths = {
        "model": systems["whisper", "asr"].model,
        "cuts": world.features["whisper"] / "dev.jsonl.gz",
        "lang": world.lang["whisper"],
    }
    grid, scored = {"length_penalty": [0.0, 1.0]}, {"normaliser": "whisper-basic"}
    keys = cfg("beam", beam=2, max_new_tokens=8)
    record = done(tune, {**keys, "tune": grid, **scored}, tmp_path / "tune.json", **paths)
    done(decode, keys, tmp_path / "d/decode.json", out=tmp_path / "d", **paths)
    settings = {"seed": 1, "type": "asr", "score": {"bootstrap": 0, **scored}}
    found = done(score, settings, tmp_path / "s/score.json", decoded=tmp_path / "d", out=tmp_path / "s")
    point = record["metrics"]["points"][1]  # the default of the decoder
    assert point["length_penalty"] == 1.0 and point["wer"] == pytest.approx(found["metrics"]["wer"])


def test_numbers_and_case_are_no_errors_under_the_normaliser_of_score(world):
    cut = next(iter(world.cuts["dev"]))
    said = SimpleNamespace(text="Twenty-five dollars, please!", language="en")
    pair = SimpleNamespace(id=cut.id, supervisions=[said]), Hypothesis((), "25 dollars please")
    lang = SimpleNamespace(normalise=lambda text, language: text, written=lambda text, language: text)
    for keys, equal in ({"normaliser": "whisper-english"}, True), ({}, False):
        config = tune.Config({"type": "asr"}, {"kind": "beam"}, {"beam": (1,)}, **keys)
        ref, hyp = tune._comparison(config, lang)(*pair)
        assert (ref == hyp) is equal


def test_tune_json_of_another_decoder_is_refused(world, stored, tmp_path, capsys):
    done(tune, {**cfg("beam"), "tune": {"insertion": [0, 1]}}, tmp_path / "t/tune.json", **inputs(world, stored))
    end = {"out": tmp_path / "out", **inputs(world, stored)}
    message = "tune.json is of a decoder of kind beam, not align; give its own"
    refused(capsys, message, decode, cfg("align"), tmp_path / "m.json", tune=tmp_path / "t/tune.json", **end)
    (tmp_path / "broken.json").write_text("{}")
    message = "is not a manifest of the stage tune"
    refused(capsys, message, decode, cfg("beam"), tmp_path / "m.json", tune=tmp_path / "broken.json", **end)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"lm_wieght": [1]}, "decoders.d.tune.lm_wieght: this key cannot be tuned; expected one of: beam, "),
        ({"lm_wieght": [1]}, "(did you mean 'lm_weight'?)"),
        ({"batch_seconds": [1]}, "decoders.d.tune.batch_seconds: this key cannot be tuned"),
        ({"lm_weight": []}, "decoders.d.tune.lm_weight is empty; list the values to try"),
        ({"lm_weight": [0.5, -1]}, "decoders.d.lm_weight is -1.0; it must be at least 0"),
        ({"beam": [5, 5]}, "decoders.d.tune.beam: 5 occurs twice; remove one"),
        ({"beam": [2.5]}, "decoders.d.tune.beam: 2.5 is not a whole number"),
        ({"beam": [0, 5]}, "decoders.d.beam is 0; it must be at least 1"),
        ({"lm_weight": range(40), "insertion": range(40)}, "decoders.d.tune has 1600 points; at most 1000 are allowed"),
    ],
)
def test_bad_grids_are_refused(grid, message):
    with pytest.raises(UserError) as caught:
        list(tuning.grid(beam.Settings, {"kind": "beam"}, grid, "decoders.d"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_whole_numbers_stay_whole():
    found = [point for point, _ in tuning.grid(beam.Settings, {"kind": "beam"}, {"beam": [20.0, 5.0]}, "d")]
    assert found == [{"beam": 5}, {"beam": 20}] and all(type(point["beam"]) is int for point in found)
    assert "nbest" not in tuning.tunable(beam.Settings) and tuning.tunable(beam.Settings)["token_beam"]


# -- the workflow


def tuned_config(**keys):
    config = edited("decoders.best", {"kind": "beam", "beam": 10, "tune": {"insertion": [0, 1]}, **keys})
    config["tasks"]["asr"]["decoders"] = ["greedy", "best"]
    return config


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tune": {"insertion": []}}, "decoders.best.tune.insertion: expected at least 1 entry, got []"),
        ({"tune": {}}, "decoders.best.tune: expected at least 1 entry, got {}"),
        ({"tune": {"nbest": [1, 2]}}, "decoders.best.tune.nbest: this key cannot be tuned; expected one of: beam, "),
        ({"tune": {"insertion": [1, 1]}}, "decoders.best.tune.insertion: 1 occurs twice in [1, 1]; remove one"),
        ({"tune": {"insertion": [1000]}}, "decoders.best.insertion is 1000.0; it must be at most 100"),
        ({"lm_weight": -1}, "decoders.best.lm_weight is -1; it must be at least 0"),
        ({"lm": "none"}, "decoders.best.lm: 'none' does not exist; "),
        ({"vocabulary": "closed"}, "decoders.best: vocabulary is closed, but no lm is named"),
        ({"hotword": ["a"]}, "decoders.best: unknown key 'hotword' (did you mean 'hotwords'?)"),
    ],
)
def test_bad_decoders_are_refused_before_the_first_job(keys, message):
    assert config_refused(tuned_config(**keys)).startswith(message)


def test_a_decoder_of_ctc_models_leaves_whisper_out():
    config = edited("decoders.best", {"kind": "align"})
    config["tasks"]["asr"]["decoders"] = ["greedy", "best"]
    found = {(r.base, r.decoder) for r in results(checked(config), SCHEMA) if r.task == "asr"}
    assert found == {("wav2vec2", "greedy"), ("wav2vec2", "best"), ("whisper", "greedy")}
    rows = sliced(config).report().cfg["systems"]
    assert {row["base"]: row.get("decoders") for row in rows if row["task"] == "asr"} == {
        "wav2vec2": None,
        "whisper": ["greedy"],
    }
    config["tasks"]["asr"]["decoders"] = ["best"]
    message = "tasks.asr.decoders: none of best decodes the seq2seq model of the base whisper; add one of a kind that"
    assert config_refused(config).startswith(message)


def test_the_slices_of_a_tuned_decoder():
    names = wildcards(base="wav2vec2", task="asr", method="full", decoder="best", test="test")
    plain, tuned = sliced(tuned_config(tune=None)), sliced(tuned_config())
    assert tuned.decode(names) == plain.decode(names) and "tune" not in plain.decode(names).cfg["decoder"]
    compared = {"normaliser": "none", "numbers": "as-written"}
    assert tuned.tune(names).cfg == tuned.decode(names).cfg | {"tune": {"insertion": [0.0, 1.0]}, **compared}
    assert plain.tunes(names) == {}
    # The order of the values does not matter.
    assert sliced(tuned_config(tune={"insertion": [1, 0.0]})).tune(names) == tuned.tune(names)


def test_a_key_of_one_family_is_tuned_for_that_family():
    config = tuned_config(tune={"insertion": [0, 1], "unknown": [-5, 0]})
    names = {"task": "asr", "method": "full", "decoder": "best", "test": "test"}
    checked(config)
    assert sliced(config).tunes(wildcards(base="wav2vec2", **names)).keys() == {"insertion", "unknown"}
    found = sliced(config).tunes(wildcards(base="whisper", **names))
    assert "unknown" not in found


@pytest.mark.slow
def test_changing_the_grid_reruns_tuning_and_what_depends_on_it(tmp_path):
    def written(**keys):
        config = tuned_config(**keys)
        return config | {"systems": config["systems"] | {"bases": ["wav2vec2"]}}

    tree = Tree(tmp_path, written())
    due = tree.due()
    # Four systems for recognition: emissions of dev and test, computed once.
    assert (due["emissions"], due["tune"]) == (8, 4) and due["decode"] == 8 + 4
    tree.run()
    commands = json.loads((tmp_path / "exp/tiny/tune/wav2vec2/asr/full/best/tune.json").read_text())
    assert commands["stage"] == "tune" and tree.due() == {}
    for changed in ({"tune": {"insertion": [0, 1, 2]}}, {"beam": 20}):
        tree.write(written(**changed))
        assert tree.due() == {"tune": 4, "decode": 4, "score": 4, "report": 1}
    # The test sets are no input of the tuning, and only the decoder that is tuned reruns.
    shell = tree.commands()
    tunes = [command for command in shell if ".stages.tune" in command]
    assert len(tunes) == 4 and all("/dev" in command and "/test" not in command for command in tunes)
    assert all("--tune exp/tiny/tune/wav2vec2/asr" in c for c in shell if ".stages.decode" in c)
    tree.write(written(tune=None) | {"decoders": {}, "tasks": tiny_config()["tasks"]})
    assert tree.due() == {"report": 1}
