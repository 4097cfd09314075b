"""Heads on encoders: they train with every way of adapting, are saved and loaded, and decode the same scores."""

import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.nn import functional as F

from lowrank_speech.decoding.language import scores
from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.constraint import SemiOrthogonal
from lowrank_speech.lowrank.factorise import factorise
from lowrank_speech.lowrank.lora import merge
from lowrank_speech.lowrank.lora_settings import LoraSettings
from lowrank_speech.lowrank.structure import low_rank_layers
from lowrank_speech.models.adapters import save_adapter
from lowrank_speech.models.counting import count
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.models.layers import dense_layers
from lowrank_speech.models.scratch import from_scratch
from lowrank_speech.stages import decode, export, train
from lowrank_speech.training.adapt import constrained, freeze_for, lora_on
from lowrank_speech.training.classifier import classifier, head_settings
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.losses.loss import Materials
from lowrank_speech.training.losses.objective import make_objective
from lowrank_speech.training.step import Stepper
from stage_world import done, refused, train_cfg, train_paths
from tiny_models import WAV2VEC2, WHISPER, member
from tiny_training import lang_of

LABELS = ["de", "en"]
SECTIONS = {
    "pooled": {"kind": "pooled", "size": 4, "layers": "weighted"},
    "statistics": {"kind": "statistics"},
    "orthonormal": {"kind": "statistics", "deviation": False, "classifier": "orthonormal"},
    "attentive": {"kind": "attentive", "attention": 4, "layers": "weighted"},
    "tdnn": {"kind": "tdnn", "channels": 8, "pooled": 12, "embedding": 6, "classifier": "cosine", "scale": 8.0},
    "tdnn-f": {"kind": "tdnn", "channels": 16, "pooled": 20, "embedding": 8, "rank": 3},
    "ecapa": {"kind": "ecapa", "channels": 8, "pooled": 12, "embedding": 6, "scales": 4, "bottleneck": 4},
    "ecapa-f": {
        "kind": "ecapa", "channels": 16, "pooled": 24, "embedding": 8, "scales": 4, "bottleneck": 6, "reduction": 0.4,
        "classifier": "cosine", "subcentres": 2, "layers": "weighted",
    },
    "language-tokens": {"kind": "language-tokens"},
}  # fmt: skip


def base_of(family, low_rank=False):
    """A base from scratch, dense or factorised."""
    tokens = lang_of(LABELS).tokens if family == "whisper" else lang_of().tokens
    model = from_scratch(family, WHISPER if family == "whisper" else WAV2VEC2, tokens, 1, "random")
    if low_rank:
        model.plan = dict.fromkeys(dense_layers(model, "ffn"), 4)
        factorise(model.body, model.plan)
    return model


def batch_of(model):
    """Four inputs of different lengths, two of each language, with their targets."""
    generator = torch.Generator().manual_seed(1)
    shape = (60, 12) if model.family == "whisper" else (6000,)
    features, lengths = torch.randn(4, *shape, generator=generator), torch.tensor([1.0, 0.8, 0.5, 0.9])
    return features, (lengths * shape[0]).long(), torch.tensor([0, 1, 0, 1])


def objective_of(model, **keys):
    """The objective of a classifier for LABELS."""
    recipe = TrainConfig(lr=0.01, head_lr=0.02, dropout=0.0, **keys)
    return make_objective("classify", Materials(recipe, labels=list(LABELS))).build(model), recipe


def steps(model, constraint=None, number=6, **keys):
    """Train on one batch; the loss before each step."""
    objective, recipe = objective_of(model, warmup=0.0, hold=1.0, **keys)
    stepper = Stepper(model.train(), objective, recipe, torch.device("cpu"), 1, constraint)
    features, lengths, target = batch_of(model)
    found = []
    for _ in range(number):
        name = objective.task.name
        cuts = [
            SimpleNamespace(id=str(i), duration=1.0, custom={"targets": {name: LABELS[t]}})
            for i, t in enumerate(target)
        ]
        found.append(stepper.step([{"features": features, "lengths": lengths, "cuts": cuts}], number).task_sum)
    model.eval()
    return found


CASES = [(family, name) for family in ("wav2vec2", "whisper") for name in SECTIONS]
CASES.remove(("wav2vec2", "language-tokens"))
ADAPTED = {"full": False, "low-rank": True, "lora": False, "low-rank-lora": True}
EVERY = ("pooled", "ecapa-f", "language-tokens")
"""Heads that are tried with every way of adapting, the others with the first and the last one."""


@pytest.mark.parametrize(
    ("family", "name", "adapt"),
    [(*case, adapt) for case in CASES for adapt in ADAPTED if case[1] in EVERY or adapt in ("full", "low-rank-lora")],
)
@pytest.mark.filterwarnings("ignore")
def test_train_save_load_and_decode(family, name, adapt, tmp_path):
    base = base_of(family, ADAPTED[adapt])
    settings = head_settings(SECTIONS[name])
    model, new = classifier(base, settings, LABELS, tmp_path, 1)
    assert new == (name != "language-tokens")
    lora = adapt.endswith("lora")
    freeze_for(model, "lora" if lora else "full", True)
    peft = lora_on(model, LoraSettings(rank=2)) if lora else None
    parts = constrained(model, not lora and bool(model.plan))
    assert (parts is None) == (not (name in ("orthonormal", "tdnn-f", "ecapa-f") or adapt == "low-rank"))
    constraint = None if parts is None else SemiOrthogonal(parts, every=1)
    losses = steps(model, constraint, loss="aam" if SECTIONS[name].get("classifier") == "cosine" else None)
    assert min(losses[1:]) < losses[0], losses
    if constraint is not None:
        assert max(constraint.deviation().values()) < 0.2
    if lora:
        save_adapter(model, peft, tmp_path)
        merge(peft)
        assert (tmp_path / "head.safetensors").exists() == (name != "language-tokens")
    model.meta.priors = [0.5, 0.5]
    features, lengths, _ = batch_of(model)
    with torch.no_grad():
        expected = model.class_logits(features, lengths)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.meta.head_plan == model.meta.head_plan and again.head.settings == model.head.settings
    assert low_rank_layers(again.head).keys() == set(model.meta.head_plan or ())
    with torch.no_grad():
        assert torch.equal(again.class_logits(features, lengths), expected)
    decoder = scores.open(SimpleNamespace(model=again), None, scores.Settings())
    with torch.no_grad():
        found = decoder({"features": features, "lengths": lengths, "cuts": []})
    rows = expected.double().log_softmax(-1) - torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    torch.testing.assert_close(torch.tensor([h.scores for h in found], dtype=torch.float64), rows)


def test_the_heads_parameters_with_and_without_factors(tmp_path):
    low, _ = classifier(base_of("wav2vec2"), head_settings(SECTIONS["ecapa-f"]), LABELS, tmp_path, 1)
    section = {k: v for k, v in SECTIONS["ecapa-f"].items() if k != "reduction"}
    dense, _ = classifier(base_of("wav2vec2"), head_settings(section), LABELS, tmp_path, 1)
    assert low.dense_head_parameters() == dense.dense_head_parameters() == dense.parameters_head()
    assert 0.4 <= 1 - low.parameters_head() / dense.parameters_head() < 0.45
    assert low.dense_parameters() == dense.parameters_total()
    save_model(low, tmp_path / "low")
    assert count(str(tmp_path / "low"))["total_before"] == low.parameters_total()


def test_a_step_with_a_frozen_encoder_constrains_only_the_head(tmp_path):
    model, _ = classifier(base_of("wav2vec2", True), head_settings(SECTIONS["tdnn-f"]), LABELS, tmp_path, 1)
    freeze_for(model, "full", True)
    with torch.no_grad():
        for layer in low_rank_layers(model.body).values():
            layer.first.weight += 0.1 * torch.randn_like(layer.first.weight)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps(model, SemiOrthogonal(constrained(model, True), every=1), number=2, freeze_encoder_steps=2)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(model.is_head(name) for name in moved)
    assert any(name.endswith("first.weight") for name in moved)


def test_sgd_for_factors_moves_those_of_the_head(tmp_path):
    model, _ = classifier(base_of("wav2vec2"), head_settings(SECTIONS["tdnn-f"]), LABELS, tmp_path, 1)
    freeze_for(model, "none", True)
    objective, recipe = objective_of(model, factor_sgd={"lr": 0.05})
    stepper = Stepper(model, objective, recipe, torch.device("cpu"), 1)
    sgd = {id(p) for p in stepper.optimiser.parts[1].param_groups[0]["params"]}
    factors = low_rank_layers(model.head).values()
    assert sgd == {id(w) for layer in factors for w in (layer.first.weight, layer.second.weight)}


def test_the_margin_counts_only_in_training_and_needs_a_cosine(tmp_path):
    section = {"kind": "statistics", "classifier": "cosine", "scale": 10.0}
    model, _ = classifier(base_of("wav2vec2"), head_settings(section), LABELS, tmp_path, 1)
    objective, _ = objective_of(model, loss="aam", aam={"margin": 0.4})
    plain, _ = objective_of(model)
    features, lengths, target = batch_of(model)
    encoded = model.states(features, lengths)
    aam, ce = objective.task, plain.task
    assert torch.equal(aam(model.eval(), *encoded, target).mean, ce(model, *encoded, target).mean)
    assert aam(model.train(), *encoded, target).mean > ce(model, *encoded, target).mean
    cosines = model.head_logits(*encoded) / 10
    angle = cosines.gather(1, target[:, None]).acos()
    moved = cosines.scatter(1, target[:, None], (angle + 0.4).cos())
    torch.testing.assert_close(aam(model, *encoded, target).mean, F.cross_entropy(10 * moved, target))
    linear, _ = classifier(base_of("wav2vec2"), None, LABELS, tmp_path, 1)
    with pytest.raises(UserError, match="aam needs a head with classifier: cosine, but the head pooled has another"):
        objective_of(linear, loss="aam")


# --- language tokens


def test_language_tokens_are_those_of_transformers_detection(tmp_path):
    base = base_of("whisper")
    model, new = classifier(base, head_settings({"kind": "language-tokens"}), LABELS, tmp_path, 1)
    assert not new and model.task == "classify" and model.decodes and not model.parameters_head()
    features, lengths, _ = batch_of(model)
    with torch.no_grad():
        found = model.class_logits(features, lengths)
        ids = base.hf.detect_language(
            input_features=base.pad_mel(features, lengths), generation_config=base.hf.generation_config
        )
    known = base.hf.generation_config.lang_to_id
    assert [known[f"<|{LABELS[i]}|>"] for i in found.argmax(-1)] == ids.tolist()
    save_model(model, tmp_path / "model")
    hf = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "model")
    start = torch.full((4, 1), model.config.decoder_start_token_id)
    with torch.no_grad():
        logits = hf(input_features=model.pad_mel(features, lengths), decoder_input_ids=start).logits[:, 0]
    torch.testing.assert_close(logits[:, [known[f"<|{label}|>"] for label in LABELS]], found, atol=1e-5, rtol=1e-4)
    raw = json.loads((tmp_path / "model" / "config.json").read_text())["lowrank_speech"]
    assert raw["head"] == {"kind": "language-tokens", "codes": {"de": "de", "en": "en"}} and not raw["priors"]


def test_a_factorised_embedding_serves_the_language_tokens(tmp_path):
    base = base_of("whisper")
    exact = base.special_tokens()
    base.plan = {"decoder.embed_tokens": 2}
    base.meta.exact = len(exact)
    factorise(base.body, base.plan, exact=exact)
    base.tie()
    model, _ = classifier(base, head_settings({"kind": "language-tokens"}), LABELS, tmp_path, 1)
    features, lengths, _ = batch_of(model)
    with torch.no_grad():
        found = model.class_logits(features, lengths)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    with torch.no_grad():
        assert again.plan == base.plan and torch.equal(again.class_logits(features, lengths), found)


@pytest.mark.parametrize(
    ("section", "labels", "message"),
    [
        (
            {},
            ["de", "xx"],
            r"has no token for 'xx', a language of the task; it has de, en: remove the language, or set",
        ),
        ({"codes": {"nl": "yy"}}, ["de", "nl"], "has no token for 'yy', the code of nl"),
        ({}, ["de", "de-AT"], "de and de-AT both have Whisper's token 'de', so they cannot be told apart"),
        ({"codes": {"fr": "de"}}, ["de", "en"], r"head.codes: 'fr' is not a language of the task \(de, en\)"),
    ],
)
def test_languages_that_whisper_lacks(section, labels, message, tmp_path):
    with pytest.raises(UserError, match=message):
        classifier(base_of("whisper"), head_settings({"kind": "language-tokens", **section}), labels, tmp_path, 1)


def test_codes_name_the_tokens(tmp_path):
    section = {"kind": "language-tokens", "codes": {"nds": "de"}}
    model, _ = classifier(base_of("whisper"), head_settings(section), ["en", "nds"], tmp_path, 1)
    assert model.head.settings.codes == {"en": "en", "nds": "de"}
    same, _ = classifier(base_of("whisper"), head_settings({"kind": "language-tokens"}), ["en", "de-CH"], tmp_path, 1)
    features, lengths, _ = batch_of(model)
    with torch.no_grad():
        assert torch.equal(model.class_logits(features, lengths), same.class_logits(features, lengths))


def test_bases_without_language_tokens(tmp_path):
    tokens = head_settings({"kind": "language-tokens"})
    with pytest.raises(UserError, match="is a wav2vec2 model for ctc; use a Whisper with its decoder"):
        classifier(member("wav2vec2"), tokens, LABELS, tmp_path, 1)
    english = base_of("whisper")
    english.hf.generation_config.lang_to_id = None
    with pytest.raises(UserError, match="is an English-only Whisper, which was not trained with language tokens"):
        classifier(english, tokens, LABELS, tmp_path, 1)


# --- the stages


@pytest.mark.slow
def test_the_stages_train_decode_and_export_heads(world, tmp_path, capsys):
    for name, adapt in (("tdnn-f", "none"), ("language-tokens", "none"), ("language-tokens", "full")):
        folder = tmp_path / f"{name}-{adapt}"
        section = SECTIONS[name]
        cfg = train_cfg("lid", adapt=adapt, head=section, constraint={"every": 1, "mode": "floating"})
        record = done(train, cfg, folder / "train.json", **train_paths(world, "whisper", folder, "lid"))
        metrics = record["metrics"]
        assert metrics["head"] == section["kind"] and metrics["labels"] == LABELS
        assert metrics["new_head"] == (name == "tdnn-f")
        if name == "tdnn-f":
            assert 0 < metrics["parameters_head"] < metrics["parameters_head_dense"]
            assert metrics["parameters_trained"] == metrics["parameters_head"]
            assert metrics["deviation"] < 0.1
        else:
            assert metrics["parameters_head"] == 0
            assert (metrics["parameters_trained"] == 0) == (adapt == "none")
            priors = json.loads((folder / "model" / "config.json").read_text())["lowrank_speech"]["priors"]
            assert bool(priors) == (adapt == "full")
        cuts = world.features["whisper"] / "test.jsonl.gz"
        out = folder / "decoded"
        cfg = {"task": {"type": "lid"}, "decoder": {"batch_seconds": 2.0}}
        done(decode, cfg, out / "decode.json", model=folder / "model", cuts=cuts, out=out)
        assert (out / "scores.tsv").read_text().splitlines()[0].split("\t") == ["id", *LABELS]
        done(export, {"format": "dense"}, folder / "export.json", model=folder / "model", out=folder / "dense")
        assert section["kind"] == load_model(folder / "dense").head.KIND
    folder = tmp_path / "refused"
    cfg = train_cfg("lid", adapt="head", head={"kind": "language-tokens"})
    paths = train_paths(world, "whisper", folder, "lid")
    refused(capsys, "has no weights of its own", train, cfg, folder / "train.json", **paths)
    cfg = train_cfg("lid", adapt="none", head={"kind": "language-tokens"})
    cfg["task"]["languages"] = ["en", "fr"]
    refused(capsys, "has no token for 'fr'", train, cfg, folder / "train.json", **paths)
    cfg = train_cfg("lid", adapt="none", head={"kind": "statistic"})
    refused(capsys, "'statistic' is not a known kind; expected one of", train, cfg, folder / "train.json", **paths)
