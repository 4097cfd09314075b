# What all rules share. They all have the same shape.
#
#   input    small manifests, compared by content, and beside them large files as ancient(), whose hash the manifest has
#   params   cfg (the stage's slice of the config) and code (hash of the code it runs): these two decide a rerun.
#            They are functions, because a plain string would be formatted, and JSON has braces. The other params are
#            functions of input or output, which Snakemake does not compare; their paths are compared as inputs already.
#   threads  Snakemake sets OMP_NUM_THREADS and its like to it

import os
import re
import shlex
import sys

import yaml
from snakemake.exceptions import WorkflowError

SRC = os.path.join(workflow.basedir, "src")
sys.path.insert(0, SRC)
# What runs is the code beside this Snakefile: the code that `code` is the hash of.
shell.prefix("export PYTHONPATH=" + shlex.quote(SRC) + "${{PYTHONPATH:+:$PYTHONPATH}}; ")

from lowrank_speech.workflow import checks, fingerprints, schema, slices
from lowrank_speech.workflow.config import (
    calibrate_key,
    calibrated,
    canonical_json,
    corpora_used,
    factorise_key,
    systems,
)
from lowrank_speech.workflow.paths import Layout

with open(os.path.join(workflow.basedir, "workflow", "schemas", "config.schema.yaml"), encoding="utf-8") as file:
    SCHEMA = yaml.safe_load(file)
try:
    schema.validate(config, SCHEMA)
    checks.check(config)
except ValueError as error:
    raise WorkflowError(f"in the config: {error}") from None

layout = Layout(config["output"].rstrip("/"))
GRID = systems(config)


# ---- for params


def cfg(stage):
    """The stage's slice as canonical JSON."""
    return lambda wildcards: canonical_json(getattr(slices, f"slice_{stage}")(config, wildcards))


def code(stage, without=()):
    """Hash of the code that the stage runs; `without` as in fingerprints.code_hash."""
    return lambda wildcards: fingerprints.code_hash(f"lowrank_speech.stages.{stage}", without=tuple(without))


def out_folder(wildcards, output):
    """The folder of the manifest: where the stage writes."""
    return os.path.dirname(output.manifest)


def scratch_folder(wildcards, output):
    """Where the stage keeps the state of a run under way."""
    return layout.scratch(os.path.dirname(output.manifest))


def tensorboard_folder(wildcards, output):
    """Where the stage leaves event files, if the recipe asks for them: they hold times, so they are no outputs."""
    return layout.tensorboard(os.path.dirname(output.manifest))


def folder_of(name):
    """The folder of the input `name`."""
    return lambda wildcards, input: os.path.dirname(input[name])


def option(flag, name, folder=False):
    """`--flag path ...`, quoted for the shell, where there is an input `name` this time, else nothing.

    `folder`: the folder of the file in place of the file.
    """

    def text(wildcards, input):
        paths = input.get(name) or []
        paths = [paths] if isinstance(paths, str) else paths
        return " ".join([flag, *(shlex.quote(os.path.dirname(p) if folder else p) for p in paths)]) if paths else ""

    return text


# ---- for resources


def gpu(stage):
    """GPUs: one for each process where the config says `device: cuda`, else none; `auto` takes what it finds."""

    def number(wildcards):
        return processes(stage)(wildcards) if slices.device(config, stage, wildcards) == "cuda" else 0

    return number


def processes(stage):
    """How many processes work at the job; each has a thread."""
    return lambda wildcards: slices.processes(config, stage, wildcards)


def launcher(stage):
    """What stands between `python -m` and the stage where several processes share the work."""

    def text(wildcards):
        number = slices.processes(config, stage, wildcards)
        return f"lowrank_speech.training.process.torchrun {number} " if number > 1 else ""

    return text


# ---- for conda


def training_env(stage):
    """The environment of a stage that trains: the one with k2 where the config says `ctc: {backend: k2}`."""

    def path(wildcards):
        name = "k2" if slices.ctc_backend(config, stage, wildcards) == "k2" else "torch"
        return f"../../envs/{name}.yaml"

    return path


# ---- for input: functions of the wildcards


def corpus_file(section, key=None):
    """The manifest of `section["corpus"]`, or the cuts of its split `section[key]`."""
    return f"{layout.corpus(section['corpus'])}/" + (f"{section[key]}.jsonl.gz" if key else "corpus.json")


def pretraining(key=None):
    """corpus_file of the base's section `pretrain`."""
    return lambda wildcards: corpus_file(config["bases"][wildcards.base]["pretrain"], key)


def lang_sources(file):
    """`file` (with {split}) in the folder of every corpus, for every split, that a token set is made from."""

    def paths(wildcards):
        section = config["langs"][wildcards.lang]
        pairs = [(c, s) for c in section.get("corpora", ()) for s in section["splits"]]
        return list(dict.fromkeys(f"{layout.corpus(corpus)}/{file.format(split=split)}" for corpus, split in pairs))

    return paths


def base_lang(wildcards):
    """The manifest of the base's token set."""
    return f"{layout.lang(config['bases'][wildcards.base]['lang'])}/lang.json"


def task_lang(wildcards):
    """The same, for recognition; else nothing."""
    return base_lang(wildcards) if config["tasks"][wildcards.task]["type"] == "asr" else []


def features_of(base, section, key, part):
    """Manifest, cuts or stored arrays (`part`) of the features of the split `section[key]`; no arrays of waveforms."""
    if part == "stored" and config["bases"][base]["features"] == "waveform":
        return []
    suffix = {"manifest": "json", "cuts": "jsonl.gz", "stored": "h5"}[part]
    return f"{layout.features(base, section['corpus'])}/{section[key]}.{suffix}"


def task_features(key, part):
    """features_of the split that the task names as `key` (train, dev, test)."""
    return lambda wildcards: features_of(wildcards.base, config["tasks"][wildcards.task], key, part)


def calibration_features(part):
    """features_of the split that `calibrate` names."""
    return lambda wildcards: features_of(wildcards.base, config["calibrate"], "split", part)


FACTORISATIONS = {
    factorise_key(section["factorise"]): section for section in config["methods"].values() if "factorise" in section
}


def moments(file):
    """A file of the calibration, for factors that start from it; else nothing."""

    def path(wildcards):
        method = FACTORISATIONS[wildcards.factorisation]
        if not calibrated(method):
            return []
        return f"{layout.calibrate(wildcards.base, calibrate_key(method['factorise']))}/{file}"

    return path


def start_of(system, file=None):
    """The model that a system's training starts from: its manifest, or a file of its model folder."""
    section = config["methods"][system.method].get("factorise")
    if section is None:
        folder, manifest = layout.base(system.base), "base.json"
    else:
        folder, manifest = layout.factorise(system.base, factorise_key(section)), "factorise.json"
    return f"{folder}/model/{file}" if file else f"{folder}/{manifest}"


DECODED = {
    "asr": ["hyp.txt", "ref.txt", "languages.tsv", "speakers.tsv"],
    "lid": ["scores.tsv", "labels.tsv", "speakers.tsv"],
}


def decoded(wildcards):
    """What decoding leaves for scoring."""
    files = DECODED[config["tasks"][wildcards.task]["type"]]
    return [f"{layout.decode(wildcards.base, wildcards.task, wildcards.method)}/{file}" for file in files]


# ---- wildcards


def names(section):
    """Regular expression for the names in a section of the config: other targets do not exist."""
    return "|".join(map(re.escape, section)) or "(?!)"


wildcard_constraints:
    corpus=names(config["corpora"]),
    split=names(sorted({split for corpus in config["corpora"].values() for split in corpus["splits"]})),
    lang=names(config.get("langs", {})),
    base=names(config["bases"]),
    task=names(config["tasks"]),
    method=names(config["methods"]),
    calibration="[A-Za-z0-9-]+",
    factorisation=names(FACTORISATIONS),
    form="[a-z]+",
