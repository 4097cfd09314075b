"""Heads in a config: which system gets which head, what is refused before the first job, and what reruns."""

import json

import pytest

from lowrank_speech.workflow import closures
from lowrank_speech.workflow.config import System, head
from workflow_config import checked, edited, refused, sliced, wildcards
from workflow_tree import tiny_config

ECAPA = {"kind": "ecapa", "channels": 64}


def grid(**methods):
    """tiny_config with further methods, all in the grid."""
    config = tiny_config()
    config["methods"] |= methods
    config["systems"]["methods"] += list(methods)
    return config


def with_base(config, source="whisper-base", **keys):
    """``config`` with the task lid on a published Whisper."""
    config["bases"] = {"whisper": {"family": "whisper", "source": source, "features": "logmel"} | keys}
    config["systems"] |= {"bases": ["whisper"], "tasks": ["lid"]}
    return config


def test_a_methods_head_replaces_the_tasks_and_recognition_has_none():
    config = edited("tasks.lid.head", {"kind": "statistics", "embedding": 8})
    config["methods"]["full"]["head"] = {"kind": "ecapa"}
    found = checked(config)
    assert head(found, System("whisper", "asr", "full")) is None
    assert head(found, System("whisper", "lid", "full"))["channels"] == 512
    own = head(found, System("whisper", "lid", "lowrank"))
    assert own == {"kind": "statistics", "layers": "last", "classifier": "linear", "scale": 30.0, "subcentres": 1,
                   "deviation": True, "embedding": 8}  # fmt: skip


def test_the_slices_of_systems_without_a_head_stay_as_they_are():
    before, after = sliced(tiny_config()), sliced(grid(ecapa={"adapt": "none", "head": {**ECAPA, "reduction": 0.3}}))
    for base in ("wav2vec2", "whisper"):
        for task in ("asr", "lid"):
            for method in ("lowrank", "full"):
                names = wildcards(base=base, task=task, method=method, form="dense", test="test",
                                  decoder="scores" if task == "lid" else "greedy")  # fmt: skip
                assert before.train(names).cfg_json == after.train(names).cfg_json
                assert "aam" not in before.train(names).cfg["training"] and "head" not in before.train(names).cfg
                for stage in ("train", "decode", "export"):
                    known = closures.unused(stage, after, names)
                    assert {"models.heads.ecapa", "models.heads.language_tokens"} <= known
                    assert closures.code_hash(stage, before, names) == closures.code_hash(stage, after, names)
    system = wildcards(base="wav2vec2", task="lid", method="ecapa", decoder="scores", test="test", form="dense")
    cfg = after.train(system).cfg
    assert cfg["head"]["kind"] == "ecapa" and cfg["constraint"]["mode"] == "floating"
    for stage in ("train", "decode", "export"):
        unused = closures.unused(stage, after, system)
        assert "models.heads.ecapa" not in unused and {"models.heads.pooled", "models.heads.tdnn"} <= unused
    assert not {"lowrank.constraint", "training.head_ranks"} & closures.unused("train", after, system)


@pytest.mark.slow
def test_what_a_head_needs_is_in_the_code_hash_and_nothing_else():
    config = grid(
        plain={"adapt": "none", "head": ECAPA},
        orthonormal={"adapt": "none", "head": {"kind": "statistics", "classifier": "orthonormal"}},
        free={"adapt": "none", "head": {**ECAPA, "rank": 4}, "constraint": {"mode": "none"}},
        aam={"adapt": "none", "head": {**ECAPA, "classifier": "cosine"}, "training": {"loss": "aam"}},
    )
    config["systems"]["tasks"] = ["lid"]
    checked(config)
    slices, unused = sliced(config), {}
    for method in ("plain", "orthonormal", "free", "aam"):
        names = wildcards(base="wav2vec2", task="lid", method=method)
        unused[method] = closures.unused("train", slices, names)
        assert ("aam" in slices.train(names).cfg["training"]) == (method == "aam")
    assert {"lowrank.constraint", "training.head_ranks", "training.losses.aam"} <= unused["plain"]
    assert "lowrank.constraint" not in unused["orthonormal"] and "training.head_ranks" in unused["orthonormal"]
    assert "lowrank.constraint" in unused["free"] and "training.head_ranks" not in unused["free"]
    assert "training.losses.aam" not in unused["aam"] and "training.losses.language" in unused["aam"]


REFUSED = {
    "an unknown kind": (
        {"head": {"kind": "ecapatdnn"}},
        "'ecapatdnn' is not valid; expected one of: pooled, statistics",
    ),
    "a key of another kind": ({"head": {"kind": "tdnn", "scales": 8}}, "unknown key 'scales'"),
    "two ranks": ({"head": {**ECAPA, "rank": 4, "fraction": 0.5}}, "give at most one of rank, fraction, reduction"),
    "channels": ({"head": {"kind": "ecapa", "channels": 100}}, "channels is 100; it must be a multiple of scales (8)"),
    "margin without cosine": (
        {"head": ECAPA, "training": {"loss": "aam"}},
        "training.loss: aam needs a head with classifier: cosine, but the head of the system wav2vec2/lid/new is ecapa",
    ),
    "margin without a head": ({"training": {"loss": "aam"}}, "the head of the system wav2vec2/lid/new is pooled"),
    "compiled layers": (
        {"head": {"kind": "pooled", "layers": "weighted"}, "training": {"compile": True}},
        "methods.new.head.layers: weighted reads the states within the encoder",
    ),
    "tokens of wav2vec2": (
        {"head": {"kind": "language-tokens"}},
        "methods.new.head: language-tokens are those of Whisper's decoder, but bases.wav2vec2 is a wav2vec2 model",
    ),
    "a constraint on nothing": (
        {"head": ECAPA, "constraint": {"mode": "floating"}},
        "methods.new.constraint: it keeps the first factors semi-orthogonal in full fine-tuning, so it needs "
        "`factorise` and adapt: full, or a head with factors or classifier: orthonormal",
    ),
    "sgd without factors": (
        {"head": ECAPA, "training": {"factor_sgd": {}}},
        "training.factor_sgd: the system wav2vec2/lid/new has no factors for it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_heads_that_cannot_train(case):
    keys, message = REFUSED[case]
    config = grid(new={"adapt": "none", **keys})
    config["systems"]["tasks"] = ["lid"]
    assert message in refused(config)


def test_factors_of_a_head_may_have_their_own_optimiser():
    config = grid(new={"adapt": "none", "head": {**ECAPA, "rank": 4}, "training": {"factor_sgd": {}}})
    config["systems"] |= {"tasks": ["lid"], "methods": ["new"]}
    checked(config)


def test_heads_without_effect():
    assert "tasks.asr.head: only tasks of type lid have a classifier" in refused(edited("tasks.asr.head", ECAPA))
    config = grid(new={"adapt": "full", "head": ECAPA})
    config["systems"]["tasks"] = ["asr"]
    assert "methods.new.head: no task of the grid recognises languages" in refused(config)


def test_language_tokens_of_published_models(tmp_path, monkeypatch):
    monkeypatch.setenv("SPEECH_MODELS", str(tmp_path))
    for name, said in {
        "many": {"is_multilingual": True, "lang_to_id": {"<|de|>": 1, "<|en|>": 2, "<|es|>": 3}},
        "english": {"is_multilingual": False},
        "old": {},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "whisper"}')
        (tmp_path / name / "generation_config.json").write_text(json.dumps(said))

    def config(source, adapt="none", languages=("de", "es"), **keys):
        made = with_base(tiny_config(), source)
        made["methods"] = {"tokens": {"adapt": adapt, "head": {"kind": "language-tokens", **keys}}}
        made["systems"]["methods"] = ["tokens"]
        made["tasks"]["lid"]["languages"] = list(languages)
        return made

    checked(config("many"))
    checked(config("many", languages=("de", "es", "xx"), codes={"xx": "en"}))
    checked(config("old", languages=("de", "xx")))  # its tokenizer tells the stage
    assert "many has no token for 'xx'" in refused(config("many", languages=("de", "xx")))
    assert "de and de-AT both have Whisper's token" in refused(config("many", languages=("de", "de-AT")))
    assert "english is an English-only Whisper" in refused(config("english"))
    assert "openai/whisper-tiny.en is an English-only Whisper" in refused(config("openai/whisper-tiny.en"))
    assert "language-tokens has no weights of its own" in refused(config("many", adapt="head"))
