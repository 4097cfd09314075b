"""The config's cross references, incompatible settings, and leaks between splits."""

import copy
from pathlib import Path

import pytest

from lowrank_speech.errors import UserError
from lowrank_speech.experiment import outside
from lowrank_speech.experiment.models import check_scratch
from lowrank_speech.lowrank import recipe
from lowrank_speech.workflow import config
from workflow_config import REMOVED, checked, edited, refused
from workflow_tree import tiny_config, write_ocean


@pytest.fixture(autouse=True)
def ocean(tmp_path, monkeypatch):
    """The folder with the corpus that the configs name."""
    write_ocean(tmp_path)
    monkeypatch.chdir(tmp_path)


def test_samples_can_be_augmented_where_they_are_read():
    config = edited("training", {"speed": [0.9, 1.1], "noise": {"snr": [5, 10]}, "reverberation": {}, "workers": 2})
    for base in config["bases"].values():
        base["features"] = "waveform"
        base.pop("features_dtype", None)
    checked(config)


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("systems.tasks", ["asr", "ldi"], "systems.tasks: 'ldi' does not exist; expected one of asr, lid"),
        (
            "systems.methods",
            ["ful"],
            "systems.methods: 'ful' does not exist; expected one of full, lowrank, lowrank_lora, aware (did you",
        ),
        ("systems.bases", ["xlsr"], "systems.bases: 'xlsr' does not exist; expected one of wav2vec2, whisper"),
        ("tasks.asr.corpus", "sea", "tasks.asr.corpus: 'sea' does not exist; expected one of babel, ocean"),
        (
            "tasks.asr.test",
            "eval",
            "tasks.asr.test: 'eval' does not exist; expected one of the splits of corpora.ocean: train, dev, test",
        ),
        ("tasks.asr.dev", "train", "tasks.asr.dev: 'train' is already the train split"),
        ("tasks.asr.languages", ["de"], "tasks.asr.languages: only tasks of type lid take this key"),
        ("bases.whisper.lang", "char", "bases.whisper.lang: 'char' does not exist; expected one of chars, pieces"),
        ("bases.whisper.lang", REMOVED, "bases.whisper.lang is missing; source: scratch needs it"),
        ("bases.whisper.pretrain", REMOVED, "bases.whisper.pretrain is missing; source: scratch needs it"),
        (
            "bases.whisper.pretrain.train",
            "tran",
            "bases.whisper.pretrain.train: 'tran' does not exist; expected one of the splits of",
        ),
        ("bases.whisper.pretrain.train", "test", "bases.whisper.pretrain.train: 'test' is the test split of tasks.lid"),
        ("bases.whisper.pretrain.dev", "pretrain", "bases.whisper.pretrain.dev: 'pretrain' is already the train split"),
        (
            "bases.whisper.features",
            "conv",
            "bases.whisper.features: 'conv' does not fit the family whisper; it takes log",
        ),
        ("bases.wav2vec2.features", "logmel", "bases.wav2vec2.features: 'logmel' does not fit the family wav2vec2"),
        (
            "training.speed",
            [0.9, 1.1],
            "training.speed: it changes samples, but the system whisper/asr/full reads",
        ),
        ("training.noise", {"snr": [5, 10]}, "training.noise: it changes samples"),
        ("training.reverberation", {"rt60": [0.2, 0.4]}, "training.reverberation: it changes samples"),
        ("bases.wav2vec2.features", "fbank", "bases.wav2vec2.features: 'fbank' does not fit the family wav2vec2"),
        ("bases.wav2vec2.features_dtype", "float16", "bases.wav2vec2.features_dtype: waveforms are not stored"),
        ("bases.whisper.window", 10, "bases.whisper.window: for source: scratch set model.max_source_positions"),
        ("bases.wav2vec2.window", 10, "bases.wav2vec2.window: wav2vec2 models take utterances of any length"),
        ("bases.whisper.source", "openai/whisper-tiny", "bases.whisper.pretrain is only for source: scratch"),
        ("langs.pieces", {"kind": "whisper"}, "bases.whisper.lang: a base from scratch needs a token set of kind char"),
        ("langs.chars", {"kind": "whisper"}, "bases.wav2vec2.lang: 'chars' is Whisper's own tokenizer"),
        (
            "langs.chars.corpora",
            ["bable"],
            "langs.chars.corpora: 'bable' does not exist; expected one of babel, ocean (did you mean 'babel'?)",
        ),
        (
            "langs.chars.splits",
            ["tain"],
            "langs.chars.splits: 'tain' does not exist; expected one of the splits of corpora.babel",
        ),
        ("langs.chars.splits", ["train", "test"], "langs.chars.splits: 'test' is the test split of tasks.lid"),
        ("methods.full.lora", {"rank": 2}, "methods.full.lora: it has no effect with adapt: full"),
        ("methods.lowrank_lora.lora", REMOVED, "methods.lowrank_lora.lora is missing; adapt: lora needs it"),
        ("methods.full.constraint", {}, "methods.full.constraint: it keeps the first factors semi-orthogonal"),
        (
            "methods.lowrank.factorise.rank",
            2,
            "methods.lowrank.factorise: give exactly one of rank, fraction, keep, ene",
        ),
        ("methods.lowrank.factorise.reduction", REMOVED, "methods.lowrank.factorise: give exactly one of"),
        (
            "methods.full.factorise",
            {"energy": 0.9, "allocate": True},
            "methods.full.factorise: energy decides",
        ),
        ("calibrate", REMOVED, "methods.aware.factorise.init: activation needs the section `calibrate`"),
        ("calibrate.split", "x", "calibrate.split: 'x' does not exist; expected one of the splits of corpora.babel"),
        (
            "tasks.lid.training",
            {"train_front_end": True},
            "training.train_front_end: the system whisper/lid/full reads",
        ),
    ],
)
def test_cross_references(path, value, message):
    assert refused(edited(path, value)).startswith(message)


SEEN = {
    "a segment of a recognition task": (
        "tasks.asr.segment",
        {"seconds": 1.5},
        "tasks.asr.segment: it would cut the audio, but",
    ),
    "factors that see the test": ("calibrate.split", "test", "calibrate.split: 'test' is the test split of tasks.lid"),
    "a base chosen on the test": (
        "bases.whisper.pretrain.dev",
        "test",
        "bases.whisper.pretrain.dev: 'test' is the test split of tasks.lid",
    ),
    "tokens of a dev split": ("langs.chars.splits", ["dev"], "langs.chars.splits: 'dev' is the dev split of tasks.lid"),
    "an epoch chosen on the test": ("tasks.asr.dev", "test", "tasks.asr.test: 'test' is already the dev split"),
    "a constraint that is never applied": (
        "methods.lowrank.constraint.probability",
        0,
        "methods.lowrank.constraint.probability is 0; it must be above 0",
    ),
    "adapters that are always dropped": (
        "methods.lowrank_lora.lora.dropout",
        1,
        "methods.lowrank_lora.lora.dropout is 1; it must be below 1",
    ),
    "no target": ("methods.lowrank_lora.lora.targets", [], "methods.lowrank_lora.lora.targets is empty"),
    "a corpus of one language": ("corpora.babel.languages", ["de"], "tasks.lid.corpus: babel has one language, de"),
    "a task of one language": ("tasks.lid.languages", ["de"], "tasks.lid.languages: ['de'] has only one language"),
    "characters without the symbols of a decoder": (
        "bases.whisper.lang",
        "chars",
        "bases.whisper.lang: 'chars' is for ctc, but whisper has a decoder; set langs.chars.for: seq2seq",
    ),
    "a default decoder that decodes nothing": (
        "decoders.scores",
        {"kind": "greedy"},
        "tasks.lid.decoders: 'scores' is of kind greedy, which does not decode tasks of type lid; define another one",
    ),
    "no reduction": ("methods.lowrank.factorise.reduction", 0, "methods.lowrank.factorise.reduction is 0; it must be"),
    "certainty": ("score.confidence", 1, "score.confidence is 1; it must be below 1"),
}


@pytest.mark.parametrize("name", SEEN)
def test_what_the_config_alone_can_tell_is_refused_before_the_first_job(name):
    path, value, message = SEEN[name]
    assert refused(edited(path, value)).startswith(message)


def test_a_kaldi_corpus_of_one_language_is_found_before_the_first_job():
    config = edited("tasks.lid", {"type": "lid", "corpus": "ocean", "train": "train", "dev": "dev", "test": "test"})
    assert "data/ocean/train has no utt2lang, so all its utterances are in 'en'; language" in refused(config)
    Path("data/ocean/train/utt2lang").write_text("u1 en\nu2 de\n")
    checked(config)


@pytest.mark.parametrize("where", ["bases.whisper", "tasks.asr", "methods.full"])
def test_ctc_beside_the_tokenizer_of_a_published_whisper_is_refused(where):
    config = edited("langs.own", {"kind": "whisper"})
    hub = {"family": "whisper", "source": "openai/whisper-tiny", "features": "logmel", "lang": "own"}
    config["bases"]["whisper"] = hub
    checked(config)
    part, name = where.split(".")
    config[part][name]["training"] = {"ctc_weight": 0.3}
    assert refused(config).startswith("training.ctc_weight: the system whisper/asr/full uses Whisper's own tokenizer")


@pytest.mark.parametrize(
    ("where", "recipe", "message"),
    [
        ("training", {"loss": "lfmni"}, "training.loss: 'lfmni'"),
        ("bases.whisper.training", {"loss": "lfmmi"}, "training.loss: the system whisper/asr/full cannot be trained"),
        ("tasks.lid.training", {"loss": "lfmmi"}, "training.loss: the system wav2vec2/lid/full cannot be trained with"),
        ("bases.whisper.pretrain", {"loss": "lfmmi"}, "bases.whisper.pretrain.loss: the base whisper cannot be"),
        ("training", {"ctc": {"prior_scale": 0.3}}, "training.ctc.prior_scale: the system whisper/asr/full trains"),
        ("bases.whisper.pretrain", {"ctc": {"delay_penalty": 0.1}}, "bases.whisper.pretrain.ctc.delay_penalty: the"),
        ("training", {"lfmmi": {"order": 9}}, "training.lfmmi.order is 9; it must be at most 6"),
    ],
)
def test_losses_and_variants_of_ctc_for_other_models_are_refused(where, recipe, message):
    config = tiny_config()
    section = config
    for name in where.split("."):
        section = section.setdefault(name, {})
    section.update(recipe)
    if "ctc" in recipe:
        section["ctc_weight"] = 0.0
    assert refused(config).startswith(message)


def test_losses_and_variants_of_ctc_are_taken_where_they_fit():
    """Language recognition uses none of these keys, so they may be set for all tasks."""
    config = tiny_config()
    config["bases"]["wav2vec2"]["training"] = {"ctc": {"prior_scale": 0.3, "delay_penalty": 0.01}}
    checked(config)
    config["bases"]["wav2vec2"]["training"] = {}
    config["tasks"]["asr"]["training"] = {"lfmmi": {"order": 3}}
    checked(config)
    config["systems"] |= {"bases": ["wav2vec2"], "tasks": ["asr"]}
    config["tasks"]["asr"]["training"] |= {"loss": "lfmmi"}
    checked(config)


# What keys of a recipe say together: recipe, what the message says after the place.
TOGETHER = [
    ({"warmup": 0.7}, ": warmup is 0.7 and hold is 0.4: they are shares of all steps, so their sum must be at most 1"),
    ({"hold": 0.95}, ": warmup is 0.1 and hold is 0.95: they are shares of all steps, so their sum must be at most 1"),
    ({"frozen_dtype": "bf16"}, ": frozen_dtype is bf16 and precision is fp32: frozen_dtype must be fp32 or the"),
    ({"frozen_dtype": "fp16", "precision": "bf16"}, ": frozen_dtype is fp16 and precision is bf16: frozen_dtype must"),
    ({"compile_buckets": 8}, ": compile_buckets needs compile: true; set it, or remove compile_buckets"),
    ({"compile_buckets": 8, "compile": False}, ": compile_buckets needs compile: true; set it"),
    ({"noise": {"snr": [20, 5]}}, ".noise.snr is [20.0, 5.0]; give the lowest value first, then the highest"),
    ({"noise": {"kinds": []}}, ".noise: noise has neither kinds nor a folder"),
    ({"reverberation": {"rt60": [0, 1]}}, ".reverberation.rt60 is "),
    ({"reverberation": {"rt60": [0.5, 0.2]}}, ".reverberation.rt60 is [0.5, 0.2]; give the lowest"),
    ({"reverberation": {"direct": [3, 0]}}, ".reverberation.direct is [3.0, 0.0]; give the lowest"),
    (
        {"precision": "fp16", "device": "cpu"},
        ": precision is fp16, but device is cpu; fp16 needs CUDA: set precision: bf16",
    ),
]


@pytest.mark.parametrize("recipe, text", TOGETHER)
def test_keys_of_a_recipe_go_together(recipe, text):
    config = tiny_config()
    for base in config["bases"].values():  # samples can be augmented
        base |= {"features": "waveform"}
        base.pop("features_dtype", None)
    tried = copy.deepcopy(config)
    tried["tasks"]["lid"]["training"] = recipe
    message = refused(tried)
    assert message.startswith(f"training{text}") and message.endswith("(the system wav2vec2/lid/full)")
    tried = copy.deepcopy(config)
    tried["methods"]["aware"]["training"] = recipe
    message = refused(tried)
    assert message.startswith(f"training{text}") and message.endswith("(the system wav2vec2/asr/aware)")
    config["bases"]["whisper"]["pretrain"] |= recipe
    message = refused(config)
    assert message.startswith(f"bases.whisper.pretrain{text}") and message.endswith("(the pretraining of whisper)")


@pytest.mark.parametrize(
    "recipe",
    [
        {"warmup": 0.6},
        {"warmup": 0.3, "hold": 0.7},
        {"warmup": 1, "hold": 0},
        {"frozen_dtype": "bf16", "precision": "bf16"},
        {"frozen_dtype": "fp32", "precision": "bf16"},
        {"precision": "fp16"},
        {"precision": "fp16", "device": "auto"},
        {"precision": "fp16", "device": "cuda"},
        {"precision": "bf16", "device": "cpu"},
        {"compile_buckets": 8, "compile": True},
        {"compile_buckets": None, "factor_sgd": None, "noise": None, "reverberation": None, "speed": []},
    ],
)
def test_recipes_that_work(recipe):
    checked(edited("training", recipe))
    config = tiny_config()
    config["bases"]["whisper"]["pretrain"] |= recipe
    checked(config)


def test_a_recipe_is_checked_once_its_overrides_are_laid_over_each_other():
    config = edited("training", {"frozen_dtype": "bf16", "warmup": 0.7})
    config["tasks"]["asr"]["training"] = config["tasks"]["lid"]["training"] = {"precision": "bf16"}
    for name, method in config["methods"].items():
        method["training"] = {"hold": 0.3} if name != "lowrank" else {}
    message = refused(config)
    assert message.startswith("training: warmup is 0.7 and hold is 0.4") and "wav2vec2/asr/lowrank" in message
    config["methods"]["lowrank"]["training"]["hold"] = 0.1
    checked(config)


def test_sgd_for_factors_needs_factors_that_train():
    config = edited("training.factor_sgd", {"lr": 0.05})
    assert refused(config) == (
        "training.factor_sgd: the system wav2vec2/asr/full has no factors for it (methods.full does not factorise); "
        "set it in the training of methods with factorise and adapt: full, or methods.full.training.factor_sgd: null"
    )
    config["methods"]["full"]["training"] = {"factor_sgd": None}
    assert refused(config).startswith(
        "training.factor_sgd: the system wav2vec2/asr/lowrank_lora has no factors for it (with adapt: lora no factors"
    )
    config["methods"]["lowrank_lora"]["training"] = {"factor_sgd": None}
    checked(config)
    config = tiny_config()
    config["bases"]["whisper"]["pretrain"]["factor_sgd"] = {}
    assert refused(config).startswith("bases.whisper.pretrain.factor_sgd: a base from scratch has no factors")


def test_a_base_from_a_folder_may_have_factors():
    base = {"family": "wav2vec2", "source": "facebook/wav2vec2-base", "lang": "chars", "features": "waveform"}
    config = edited("bases.wav2vec2", base)
    config["systems"] = {"bases": ["wav2vec2"], "tasks": ["asr"], "methods": ["full"]}
    config["training"]["factor_sgd"] = {}
    assert "(methods.full does not factorise, and facebook/wav2vec2-base is a hub name; if" in refused(config)
    for folder in ("./models/mine", "exp/first/train/wav2vec2/asr/lowrank/model", str(Path("other").resolve())):
        Path(folder).mkdir(parents=True)
        Path(folder, "config.json").touch()
        config["bases"]["wav2vec2"]["source"] = folder
        checked(config)


def test_augmentation_by_defaults_alone_changes_samples_too():
    for key in ("noise", "reverberation"):
        message = refused(edited(f"training.{key}", {}))
        assert message.startswith(f"training.{key}: it changes samples, but the system whisper/asr/full reads")


def test_w2v_bert_comes_from_a_folder_and_has_no_front_end():
    base = {"family": "w2v-bert", "source": "facebook/w2v-bert-2.0", "features": "waveform", "lang": "chars"}
    checked(edited("bases.wav2vec2", base | {"features": "fbank", "features_dtype": "float16"}))
    config = edited("bases.wav2vec2", base)
    checked(config)
    config["tasks"]["asr"]["training"] = {"train_front_end": True}
    assert refused(config).startswith("training.train_front_end: the system wav2vec2/asr/full reads stored features")
    config = edited("bases.wav2vec2", base | {"features_dtype": "float16"})
    assert refused(config).endswith("use features: fbank")
    config = edited("bases.wav2vec2", base | {"source": "scratch"})
    assert refused(config).startswith("bases.wav2vec2.source: scratch supports only wav2vec2 and whisper")


def test_recognition_needs_a_token_set():
    config = edited("bases.whisper", {"family": "whisper", "source": "openai/whisper-tiny", "features": "logmel"})
    assert refused(config).startswith("bases.whisper.lang: the task asr recognises speech and needs a token set")
    config["systems"]["tasks"] = ["lid"]
    checked(config)


def test_an_output_that_cannot_be_made_or_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert outside.blocked_output(str(tmp_path / "new" / "exp"), writing=True) is None
    assert outside.blocked_output(str(tmp_path / "file"), writing=False) == (
        f"output: {tmp_path}/file cannot be a folder, because {tmp_path}/file is a file; name another folder"
    )
    assert "is a file; name another" in outside.blocked_output(str(tmp_path / "file" / "exp"), writing=False)
    monkeypatch.setattr(outside.os, "access", lambda path, mode: False)  # root may write anywhere
    assert outside.blocked_output(str(tmp_path / "new"), writing=False) is None  # a dry run may look
    assert f"because {tmp_path} is read-only for you" in outside.blocked_output(str(tmp_path / "new"), writing=True)


OF_SCRATCH = {
    "an unknown key": (
        "bases.wav2vec2.model",
        {"hiden_size": 16},
        "bases.wav2vec2.model: 'hiden_size' is not a key of",
    ),
    "heads that do not divide the width": (
        "bases.whisper.model",
        {"d_model": 33},
        "bases.whisper.model: these keys do not",
    ),
    "a value of another type": (
        "bases.wav2vec2.model",
        {"hidden_size": "16"},
        "bases.wav2vec2.model: Validation error",
    ),
    "an odd number of strides": (
        "bases.wav2vec2.model",
        {"conv_stride": [1]},
        "bases.wav2vec2.model: Class validation",
    ),
    "a reduction out of reach": (
        "methods.lowrank.factorise",
        {"reduction": 0.9},
        "methods.lowrank.factorise: a reduction",
    ),
    "no such layers": (
        "methods.lowrank.factorise",
        {"rank": 4, "layers": "*fc9"},
        "methods.lowrank.factorise: the pattern",
    ),
}


def scratch(config):
    """Check the bases from scratch of ``config`` as the workflow does before it makes them."""
    check_scratch(checked(config), config["systems"]["bases"])


@pytest.mark.parametrize("name", OF_SCRATCH)
def test_a_model_from_scratch_that_cannot_be_made_is_refused_before_the_first_job(name):
    path, value, message = OF_SCRATCH[name]
    with pytest.raises(UserError) as refusal:
        scratch(edited(path, value))
    assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)


def test_energy_and_allocation_need_no_weights_to_be_checked():
    for keys in ({"energy": 0.9}, {"reduction": 0.2, "allocate": True}):
        scratch(edited("methods.lowrank.factorise", keys))


def test_the_workflow_knows_the_words_of_the_recipe():
    """It imports none of the package's libraries, so it has its own copies."""
    for name in ("CALIBRATED", "WISHES"):
        assert getattr(config, name) == getattr(recipe, name)
