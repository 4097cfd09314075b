"""The stage emissions, and a new decoder that reads the stored emissions: it needs one file and one registry entry."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from lowrank_speech.decoding import registry
from lowrank_speech.features.batches import Loader
from lowrank_speech.features.inputs import inputs_of
from lowrank_speech.features.store import load_cuts
from lowrank_speech.models.folder import load_model
from lowrank_speech.stages import decode, emissions
from stage_world import decode_with, done, hypotheses, make_features, refused, run, table, utterance

SRC = Path(__file__).parents[1] / "src"
# A whole decoder.
DUMMY = '''
"""The best path through stored emissions."""

from typing import Literal

from lowrank_speech.decoding.base import Decoding, Hypothesis
from lowrank_speech.settings import key, settings

READS = "emissions"


@settings
class Settings(Decoding):
    kind: Literal["dummy"] = key("dummy", "the best path")
    scale: float = key(1.0, "of the log probabilities")


def open(source, lang, settings):
    from lowrank_speech.decoding.ctc.paths import collapse, tokens_of

    tokens = tokens_of(source, lang)

    def decode(batch):
        best = (settings.scale * batch["log_probs"]).max(-1)
        rows = zip(best.indices, best.values, batch["frames"].tolist(), strict=True)
        ids = [(collapse(path[:n]), float(scores[:n].sum())) for path, scores, n in rows]
        return [Hypothesis(tuple(labels), tokens.decode(labels), score) for labels, score in ids]

    return decode
'''
CASE = """        case "ctc/dummy":
            from lowrank_speech.decoding.ctc import dummy as found
"""


@pytest.fixture(scope="module")
def stored(world, systems, tmp_path_factory):
    """Emissions of the test set under the wav2vec 2.0 system, and their manifest."""
    folder = tmp_path_factory.mktemp("emissions")
    paths = {"model": systems["wav2vec2", "asr"].model, "cuts": world.features["wav2vec2"] / "test.jsonl.gz"}
    return folder, done(emissions, {}, folder / "emissions.json", out=folder, **paths)


@pytest.fixture
def dummy(monkeypatch):
    """The decoder, registered."""
    module = types.ModuleType("lowrank_speech.decoding.ctc.dummy")
    exec(compile(DUMMY, "dummy.py", "exec"), module.__dict__)
    listed = registry._listed
    monkeypatch.setattr(registry, "_listed", lambda *name: module if name == ("dummy", "ctc") else listed(*name))
    kinds = registry.kinds
    kind = registry.Kind("dummy", "ctc", "asr", module.READS, module.Settings)
    monkeypatch.setattr(registry, "kinds", lambda *a, **k: [*kinds(*a, **k), kind])


def decode_stored(world, stored, folder, cuts=None, **keys):
    paths = {"emissions": stored, "cuts": cuts or world.features["wav2vec2"] / "test.jsonl.gz"}
    cfg = {"task": {"type": "asr"}, "decoder": {"kind": "dummy", "batch_seconds": 2.0, **keys}}
    return run(decode, cfg, folder / "decode.json", out=folder, lang=world.lang["wav2vec2"], **paths)


def alike(one, other):
    """The same outputs, scores but for rounding."""
    for name in ("hyp.txt", "ref.txt", "languages.tsv", "speakers.tsv", "set_aside.tsv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    for a, b in zip(hypotheses(one), hypotheses(other), strict=True):
        assert a.pop("score") == pytest.approx(b.pop("score"), abs=1e-3) and a == b


def test_emissions_are_the_networks_log_probabilities(world, systems, stored):
    folder, record = stored
    model = load_model(systems["wav2vec2", "asr"].model)
    cuts = load_cuts(world.features["wav2vec2"] / "test.jsonl.gz")
    (batch,) = Loader(inputs_of(systems["wav2vec2", "asr"].model)).all(cuts, 60.0)
    with torch.inference_mode():
        logits, frames = model.ctc_logits(batch["features"], batch["lengths"])
    with h5py.File(folder / "emissions.h5") as file:
        for cut, row, n in zip(batch["cuts"], logits.log_softmax(-1).numpy(), frames.tolist(), strict=True):
            assert file[cut.id].dtype == np.float32 and file[cut.id].shape == (n, logits.shape[-1])
            np.testing.assert_allclose(file[cut.id], row[:n], atol=1e-5, rtol=0)
    listed = {row["id"]: row for row in table(folder / "frames.tsv")}
    assert {name: int(row["frames"]) for name, row in listed.items()} == {
        cut.id: n for cut, n in zip(batch["cuts"], frames.tolist(), strict=True)
    }
    assert float(listed["test-de0"]["seconds"]) == pytest.approx(0.3)
    numbers = record["metrics"]
    assert (numbers["utterances"], numbers["task"], numbers["set_aside"]) == (8, "ctc", {})
    assert numbers["frames"] == sum(frames.tolist()) and numbers["lang_sha256"] == model.meta.lang_sha256
    assert numbers["symbols"] == logits.shape[-1] and 0 < record["cost"]["rtf"] < 10
    assert set(record["outputs"]) == {"emissions.h5", "frames.tsv", "set_aside.tsv"}
    assert record["cfg"] == {"emissions": {"batch_seconds": 60.0, "dtype": "float32"}}


def test_equal_runs_give_equal_bytes_and_float16_fewer(world, systems, stored, tmp_path):
    paths = {"model": systems["wav2vec2", "asr"].model, "cuts": world.features["wav2vec2"] / "test.jsonl.gz"}
    again = done(emissions, {}, tmp_path / "a" / "emissions.json", out=tmp_path / "a", **paths)
    assert again["outputs"] == stored[1]["outputs"]
    cfg = {"emissions": {"dtype": "float16"}}
    done(emissions, cfg, tmp_path / "b" / "emissions.json", out=tmp_path / "b", **paths)
    with h5py.File(stored[0] / "emissions.h5") as whole, h5py.File(tmp_path / "b" / "emissions.h5") as half:
        for name in whole:
            assert half[name].dtype == np.float16
            np.testing.assert_allclose(half[name], whole[name], rtol=1e-3)


def test_a_decoder_reads_stored_emissions_and_hears_what_greedy_hears(world, systems, stored, dummy, tmp_path):
    decode_with(world, systems, "wav2vec2", "asr", tmp_path / "greedy")
    code, record = decode_stored(world, stored[0], tmp_path / "dummy")
    assert code == 0
    alike(tmp_path / "greedy", tmp_path / "dummy")
    assert record["cfg"]["decoder"] == {"kind": "dummy", "batch_seconds": 2.0, "scale": 1.0}
    assert record["cost"]["network_rtf"] == stored[1]["cost"]["rtf"] > 0
    assert record["metrics"]["speech_seconds"] == stored[1]["metrics"]["speech_seconds"]


def test_what_the_network_could_not_take_is_set_aside_in_decoding(world, systems, dummy, tmp_path):
    silent = utterance(tmp_path, "x-silent", "ab", "de")
    silent.supervisions = []
    wordless = utterance(tmp_path, "x-none", None, "de")  # has emissions, and no reference
    cuts = make_features(world, "wav2vec2", [*world.cuts["test"], wordless], tmp_path, "test")
    paths = {"model": systems["wav2vec2", "asr"].model, "cuts": cuts}
    record = done(emissions, {}, tmp_path / "e" / "emissions.json", out=tmp_path / "e", **paths)
    assert record["metrics"]["utterances"] == 9
    code, record = decode_stored(world, tmp_path / "e", tmp_path / "out", cuts)
    assert code == 0 and record["metrics"]["set_aside"] == {"no text": 1} and record["metrics"]["utterances"] == 8
    # As if the network had refused one: its row says why.
    (tmp_path / "e" / "set_aside.tsv").write_text("id\treason\tdetail\ntest-de0\ttoo long\t9 s\n")
    lines = (tmp_path / "e" / "frames.tsv").read_text().splitlines()
    (tmp_path / "e" / "frames.tsv").write_text("\n".join(x for x in lines if not x.startswith("test-de0")) + "\n")
    code, record = decode_stored(world, tmp_path / "e", tmp_path / "out", cuts)
    assert code == 0 and record["metrics"]["set_aside"] == {"no text": 1, "too long": 1}


def test_emissions_that_do_not_fit_are_refused(world, systems, stored, dummy, tmp_path, capsys):
    cuts, lang = world.features["wav2vec2"] / "test.jsonl.gz", world.lang["wav2vec2"]
    cfg = {"task": {"type": "asr"}, "decoder": {"kind": "dummy"}}
    out = {"cuts": cuts, "lang": lang, "out": tmp_path / "out"}
    end = (decode, cfg, tmp_path / "m.json")
    model = systems["wav2vec2", "asr"].model
    refused(
        capsys,
        "the decoder dummy reads a folder of the stage emissions; give it as --emissions",
        *end,
        model=model,
        **out,
    )
    refused(capsys, "the decoder dummy needs the model; give its folder as --model", *end, **out)
    plain = (decode, {"task": {"type": "asr"}}, tmp_path / "m.json")
    refused(
        capsys, "the decoder greedy needs the model; give its folder as --model", *plain, emissions=stored[0], **out
    )
    refused(capsys, "has no emissions.json; give a folder that the stage", *end, emissions=tmp_path, **out)
    message = "was trained with other tokens than those of the given lang folder"
    refused(capsys, message, *end, emissions=stored[0], **out | {"lang": world.lang["whisper"]})
    other = make_features(world, "wav2vec2", [utterance(tmp_path, "other", "ab", "de")], tmp_path, "test")
    refused(capsys, f"utterance other of {other} has no emissions", *end, emissions=stored[0], **out | {"cuts": other})
    broken = tmp_path / "broken"
    shutil.copytree(stored[0], broken)
    (broken / "emissions.h5").write_bytes((stored[0] / "emissions.h5").read_bytes()[:3000])
    message = f"its emissions in {broken}/emissions.h5 cannot be read"
    refused(capsys, message, *end, emissions=broken, **out)
    (broken / "emissions.json").write_text("{}")
    refused(capsys, "emissions.json or a table beside it is not valid", *end, emissions=broken, **out)


def test_only_ctc_models_have_emissions(world, systems, tmp_path, capsys):
    paths = {"cuts": world.features["whisper"] / "test.jsonl.gz", "out": tmp_path}
    message = "is a model for seq2seq; only CTC models have emissions"
    refused(capsys, message, emissions, {}, tmp_path / "e.json", model=systems["whisper", "asr"].model, **paths)
    message = "emissions.dtype: 'int8' is not valid; expected one of: float32, float16"
    cfg = {"emissions": {"dtype": "int8"}}
    refused(capsys, message, emissions, cfg, tmp_path / "e.json", model=systems["whisper", "asr"].model, **paths)


@pytest.mark.slow
def test_a_new_decoder_is_one_file_and_one_case(world, systems, stored, tmp_path):
    """In a copy of the sources, as a person would add it; the stages run from there."""
    shutil.copytree(SRC, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    package = tmp_path / "src" / "lowrank_speech" / "decoding"
    (package / "ctc" / "dummy.py").write_text(DUMMY)
    before = (package / "registry.py").read_text()
    (package / "registry.py").write_text(before.replace("        case _:\n", f"{CASE}        case _:\n", 1))
    assert (package / "registry.py").read_text().count("\n") == before.count("\n") + 2
    env = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    cfg = {"task": {"type": "asr"}, "decoder": {"kind": "dummy"}}
    command = [sys.executable, "-m", "lowrank_speech.stages.decode", "--cfg", json.dumps(cfg)]
    paths = {"emissions": stored[0], "cuts": world.features["wav2vec2"] / "test.jsonl.gz", "out": tmp_path / "out"}
    paths |= {"lang": world.lang["wav2vec2"], "manifest": tmp_path / "out" / "decode.json"}
    for name, path in paths.items():
        command += [f"--{name}", str(path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    decode_with(world, systems, "wav2vec2", "asr", tmp_path / "greedy")
    alike(tmp_path / "greedy", tmp_path / "out")
    # It is among the kinds that a typo is told of.
    command[4] = json.dumps({"task": {"type": "asr"}, "decoder": {"kind": "dumy"}})
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and re.search("expected one of: .*dummy.* .did you mean 'dummy'", done.stderr)
