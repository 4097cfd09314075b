"""What a job's code hash covers: the modules that its stage imports, less those that this job cannot run.

A job runs one family of models, one head, one decoder, one kind of corpus: the others' modules are left out, and so are
those of other ways of adapting. Words, help texts and the workflow itself are left out of every hash.
"""

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from lowrank_speech import fingerprints
from lowrank_speech.fingerprints import PACKAGE
from lowrank_speech.workflow.config import System
from lowrank_speech.workflow.slices import NAMES, Slices

_KNOWN: WeakKeyDictionary[Slices, dict[tuple[str, ...], str]] = WeakKeyDictionary()

WORDS = ("settings_errors", "schemas", "stages.keys", "workflow")
"""What decides no result of any stage."""
LORA = ("lowrank.lora", "lowrank.adapter", "lowrank.product")
ANY_MODEL = ("base", "features", "calibrate", "factorise", "train", "emissions", "decode", "export")
"""Stages that load models."""


def code_hash(stage: str, slices: Slices, wildcards: Any) -> str:
    """Hex sha256 of the code that a job of ``stage`` runs; ``wildcards`` name its artefact."""
    key = (stage, *(getattr(wildcards, name) for name in NAMES[stage]))
    known = _KNOWN.setdefault(slices, {})
    if key not in known:
        left_out = tuple(sorted(f"{PACKAGE}.{name}" for name in unused(stage, slices, wildcards)))
        known[key] = fingerprints.code_hash(f"{PACKAGE}.stages.{stage}", without=left_out)
    return known[key]


def unused(stage: str, slices: Slices, wildcards: Any) -> set[str]:
    """Modules (relative to the package) that the stage imports somewhere and a job does not run."""
    found = set(WORDS)
    if stage in ANY_MODEL:
        family = slices.config["bases"][wildcards.base]["family"]
        found |= _others("models.families", slices.schema["families"], {family})
        found |= {f"features.{kind}" for kind in ("fbank", "logmel") if kind != _computed(family)}
        found |= _others("models.heads", HEADS, _heads(stage, slices, wildcards))
    match stage:
        case "corpus":
            kinds = [branch["if"]["properties"]["kind"]["const"] for branch in _branches(slices, "corpora")]
            found |= _others("corpora", kinds, {slices.config["corpora"][wildcards.corpus]["kind"]})
        case "lang":
            found |= {"lang.pieces"} - {"lang.pieces" if _lang(slices, wildcards) == "sentencepiece" else ""}
        case "base":
            found |= _of_base(slices, wildcards)
        case "factorise":
            cfg = slices.factorise(wildcards).cfg["factorise"]
            found |= set() if cfg["allocate"] else {"lowrank.allocate"}
        case "train":
            found |= _of_train(slices, wildcards)
        case "decode":
            found |= _other_decoders(slices, wildcards)
        case "score":
            asr = slices.config["tasks"][wildcards.task]["type"] == "asr"
            found |= {"scoring.lid", "scoring.detection"} if asr else {"scoring.asr"}
    return found


HEADS = ("ctc", "pooled")
LOSSES = ("ctc", "seq2seq", "classify")


def _of_base(slices: Slices, wildcards: Any) -> set[str]:
    base = slices.config["bases"][wildcards.base]
    if base["source"] != "scratch":
        return {"training", "features", "lang.select", "models.scratch", "models.gabor"}
    cfg = slices.base(wildcards).cfg
    task = slices.schema["families"][base["family"]]["recognises_by"]
    gabor = set() if base["family"] == "wav2vec2" and cfg["front_end"] == "gabor" else {"models.gabor"}
    return {"models.sources", *LORA, "lowrank.constraint"} | gabor | _recipe(task, cfg["pretrain"])


def _of_train(slices: Slices, wildcards: Any) -> set[str]:
    cfg = slices.train(System(wildcards.base, wildcards.task, wildcards.method)).cfg
    found = set() if cfg["adapt"] == "lora" else set(LORA)
    if "constraint" not in cfg or cfg["constraint"]["mode"] == "none":
        found.add("lowrank.constraint")
    return found | _recipe(slices.model_task(wildcards), cfg["training"])


def _recipe(task: str, recipe: dict[str, Any]) -> set[str]:
    """Losses and augmentations that a training on models of ``task`` does not use."""
    losses = {task}
    if recipe.get("ctc_weight") and task == "seq2seq":
        losses |= {"ctc"}
    if recipe.get("language_weight") and task != "classify":
        losses |= {"classify"}
    found = _others("training.losses", LOSSES, losses)
    if not (recipe.get("speed") or recipe.get("noise") or recipe.get("reverberation")):
        found.add("features.augment")
    if not recipe.get("spec_augment"):
        found.add("training.data.masks")
    return found


def _heads(stage: str, slices: Slices, wildcards: Any) -> set[str]:
    """Heads that the models of a job may have: a published base may come with any."""
    base = slices.config["bases"][wildcards.base]
    found = {"ctc"} & {slices.schema["families"][base["family"]]["recognises_by"]}
    if stage in ("train", "emissions", "decode", "export"):
        own = {"ctc": {"ctc"}, "classify": {"pooled"}}.get(slices.model_task(wildcards), set())
        if stage != "train":
            return own
        found |= own
    return found if base["source"] == "scratch" else set(HEADS)


def _other_decoders(slices: Slices, wildcards: Any) -> set[str]:
    own = slices.config["decoders"][wildcards.decoder]["kind"]
    task = slices.model_task(wildcards)
    every = [name.split(".")[1:] for name in slices.schema["$defs"] if name.startswith("decoder.")]
    folders = {"ctc": "ctc", "seq2seq": "whisper", "classify": "language"}
    return {f"decoding.{folders[of]}.{kind}" for kind, of in every if (kind, of) != (own, task)}


def _computed(family: str) -> str:
    return {"w2v-bert": "fbank", "whisper": "logmel"}.get(family, "")


def _lang(slices: Slices, wildcards: Any) -> str:
    return slices.config["langs"][wildcards.lang]["kind"]


def _branches(slices: Slices, section: str) -> list[dict[str, Any]]:
    return slices.schema["properties"][section]["additionalProperties"]["allOf"]


def _others(package: str, known: Iterable[str], used: set[str]) -> set[str]:
    return {f"{package}.{name.replace('-', '_')}" for name in known if name not in used}
