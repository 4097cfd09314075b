# Helpers of all rules. All rules have the same shape:
#
#   input    small manifests, compared by content, and beside them large files as ancient(), whose hash the manifest has;
#            `made` adds no file; it checks that the artefact on the disk is what the config asks for
#   output   the same files for any config; the manifest lists what else a stage makes
#   params   cfg (the stage's slice of the config) and code (hash of the code it runs): these two decide a rerun.
#            They are functions, because a plain string would be formatted, and JSON has braces. The other params are
#            functions of input or output, which Snakemake does not compare; it compares their paths as inputs.
#   threads  Snakemake sets OMP_NUM_THREADS and its like to it

import functools
import inspect
import json
import os
import re
import shlex
import sys
import time

from snakemake.io import strip_wildcard_constraints
from snakemake.logging import logger

SRC = f"{workflow.basedir}/src"
sys.path.insert(0, SRC)

from lowrank_speech import yaml_files
from lowrank_speech.errors import UserError
from lowrank_speech.workflow import closures, records
from lowrank_speech.workflow.config import (
    DEV,
    MEAN_LOGMEL,
    System,
    backend_decoder,
    calibrate_key,
    calibrated,
    calibrated_results,
    factorise_key,
    fused,
    lang_splits,
    lm_dev,
    lm_splits,
    lms_used,
    overlaps,
    results,
    splits_used,
    start_share,
    systems,
    task_splits,
    teacher,
    tests,
    untranscribed,
)
from lowrank_speech.workflow.experiments import checked, read_schema
from lowrank_speech.workflow.paths import Layout
from lowrank_speech.workflow.results import errors
from lowrank_speech.workflow.shell import prefix
from lowrank_speech.workflow.slices import Slices

shell.prefix(prefix(SRC, bool(workflow.deployment_settings.deployment_method)))


def refuse(reason):
    """End Snakemake with one line. A WorkflowError would be followed by the place in this file."""
    raise SystemExit(f"error in the config: {reason}")


SCHEMA = read_schema()
try:
    # A job on a cluster node reads the config again, but the process that submitted it has already checked it.
    if workflow.is_main_process:
        for path in workflow.configfiles:
            yaml_files.load(path)
    CONFIG = checked(config, SCHEMA, check=workflow.is_main_process)
    slices = Slices(CONFIG, SCHEMA)
    if workflow.is_main_process:
        from lowrank_speech.corpora import tracking
        from lowrank_speech.experiment import outside
        from lowrank_speech.experiment.check import check
        from lowrank_speech.experiment.models import check_scratch

        check(slices)
except ValueError as error:
    refuse(error)

STARTED = time.time()
layout = Layout(CONFIG["output"].rstrip("/"))
GRID, RESULTS, CALIBRATED = systems(CONFIG), results(CONFIG, SCHEMA), calibrated_results(CONFIG)
ASKS_FOR_CUDA = '"cuda"' in json.dumps(CONFIG)


def quick(function):
    """Store the signature of a function. Snakemake asks for it in every job, so this speeds up the planning of large grids."""
    function.__signature__ = inspect.signature(function)
    return function


# Corpora and models that have to be read and cannot be found: a dry run accepts them, unless the config has their path.
LOST = {}
if workflow.is_main_process:
    if blocked := outside.blocked_output(CONFIG["output"], writing=False):
        refuse(blocked)

    unread = {c for c, s in splits_used(CONFIG) if not os.path.isfile(f"{layout.corpus(c)}/{s}.json")}
    LOST = outside.lost_corpora(sorted(unread), CONFIG)
    for name, why in LOST.items():
        if CONFIG["corpora"][name].get("path") is not None:
            refuse(why)

    unmade = [base for base in CONFIG["systems"]["bases"] if not os.path.isfile(f"{layout.base(base)}/base.json")]
    LOST = LOST | outside.lost_bases(unmade, CONFIG)
    try:
        check_scratch(CONFIG, unmade)
    except UserError as error:
        refuse(error)

    untrained = {f"the system {'/'.join(s)}": s for s in GRID if not os.path.isfile(f"{layout.train(*s)}/train.json")}
    unmade = [
        lm for lm in lms_used(CONFIG, CONFIG["systems"]["tasks"]) if not os.path.isfile(f"{layout.lm(lm)}/lm.json")
    ]
    if (lost := outside.lost_lms({lm: CONFIG["lms"][lm] for lm in unmade})) is not None:
        refuse(lost)

    if (lost := outside.lost_lexicon(slices.graphs().values())) is not None:
        refuse(lost)

    noise = outside.lost_noise({whose: slices.train(s).cfg.get("training") for whose, s in untrained.items()})
    if noise is not None:
        refuse(noise)


onstart:
    if blocked := outside.blocked_output(CONFIG["output"], writing=True):
        refuse(blocked)
    for why in LOST.values():
        refuse(why)


# ---- for params


def cfg(stage):
    """The stage's slice as canonical JSON."""
    return quick(lambda wildcards: getattr(slices, stage)(wildcards).cfg_json)


def runtime(stage):
    """The keys that change no result, as canonical JSON. A function of `output`, so Snakemake does not compare it."""
    return quick(lambda wildcards, output: getattr(slices, stage)(wildcards).runtime_json)


def code(stage):
    """Hash of the code that the job runs."""
    return quick(lambda wildcards: closures.code_hash(stage, slices, wildcards))


def scratch_folder(wildcards, output):
    """Where the stage keeps the state of an unfinished run."""
    return layout.scratch(os.path.dirname(output.manifest))


def tensorboard_folder(wildcards, output):
    """Where the stage writes event files, if the config asks for them. They contain times, so they are not outputs."""
    return layout.tensorboard(os.path.dirname(output.manifest))


def options(*files, **folders):
    """`--name path ...`, quoted for the shell, where the job has such an input, else nothing: `files` are inputs with the
    names of their options; `folders` are options for the folder of an input or output, option=name.
    """

    def text(wildcards, input, output):
        words = []
        for name in files:
            paths = input.get(name) or []
            words += [flag(name), *([paths] if isinstance(paths, str) else paths)] if paths else []
        for name, file in folders.items():
            path = input.get(file) or output.get(file)
            words += [flag(name), os.path.dirname(path)] if path else []
        return shlex.join(words)

    return quick(text)


def folders(several, **single):
    """As ``options(**single)``, and before it ``--several FOLDER ...``: the folders of the input files ``several``."""

    def text(wildcards, input, output):
        words = [flag(several), *map(os.path.dirname, input[several])]
        for name, file in single.items():
            words += [flag(name), os.path.dirname(input.get(file) or output.get(file))]
        return shlex.join(words)

    return quick(text)


def flag(name):
    """`--some-name` for some_name."""
    return f"--{name.replace('_', '-')}"


# ---- for resources


def gpu(stage):
    """GPUs: one for each process if the config says `device: cuda`, else none; `auto` uses what it finds."""

    if not ASKS_FOR_CUDA:
        return 0

    def number(wildcards):
        found = getattr(slices, stage)(wildcards)
        return processes(stage)(wildcards) if found.runtime.get("device") == "cuda" else 0

    return quick(number)


def processes(stage):
    """Number of processes that share the job; each has a thread."""
    return quick(lambda wildcards: (recipe(stage, wildcards) or {}).get("processes", 1))


def recipe(stage, wildcards):
    """The recipe of a training; None if a base is imported."""
    return getattr(slices, stage)(wildcards).cfg.get("training" if stage == "train" else "pretrain")


def launcher(stage):
    """The launcher between `python -m` and the stage, if several processes share the work."""

    def text(wildcards):
        number = processes(stage)(wildcards)
        return f"lowrank_speech.training.process.torchrun {number} " if number > 1 else ""

    return quick(text)


# ---- for conda


def training_env(stage):
    """The environment of a stage that trains: the one with k2 if the config says `ctc: {backend: k2}`."""

    def path(wildcards):
        backend = ((recipe(stage, wildcards) or {}).get("ctc") or {}).get("backend")
        return f"../../envs/{'k2' if backend == 'k2' else 'torch'}.yaml"

    return quick(path)


def decoding_env(wildcards):
    """The environment of a stage that decodes: the one with k2 if the decoder says `backend: k2`."""
    backend = slices.decoding(wildcards).cfg["decoder"].get("backend")
    return f"../../envs/{'k2' if backend == 'k2' else 'torch'}.yaml"


# ---- for input: functions of the wildcards


@functools.lru_cache(maxsize=None)
def template(declared):
    """A declared output as a format string."""
    return strip_wildcard_constraints(str(declared))


def made(stage):
    """No file. If the artefact on the disk is not what the job would make, the job runs; the log says why."""

    def look(wildcards):
        if not workflow.is_main_process:
            return []
        declared = workflow.get_rule(stage).output
        manifest = template(declared.manifest).format(**dict(wildcards.items()))
        if not os.path.isfile(manifest):
            return []  # the job runs anyway
        recorded = all(workflow.persistence.metadata(file.apply_wildcards(wildcards)) for file in declared)
        found = records.problem(
            manifest,
            getattr(slices, stage)(wildcards).cfg_json,
            code(stage)(wildcards),
            recorded,
            sources(stage, wildcards),
        ) or (stage == "corpus" and tracking.changed(f"{manifest.removesuffix('json')}audio.json"))
        if found:
            logger.info(f"{os.path.dirname(manifest)} ({os.path.basename(manifest)}) is made again: {found}")
            # As `snakemake -R FILE` does, but while the graph is built.
            workflow.dag.forcefiles.add(manifest)
        return []

    return quick(look)


def sources(stage, wildcards):
    """Name -> path of the external files that the job would read; None: unknown here."""
    if stage == "corpus":
        return outside.corpus_sources(slices.corpus(wildcards).cfg["corpus"])
    if stage == "graph":
        return outside.lexicon_sources(slices.graph(wildcards).cfg["lexicon"])
    if stage == "base" and CONFIG["bases"][wildcards.base]["source"] != "scratch":
        return outside.base_sources(CONFIG["bases"][wildcards.base]["source"])
    if stage == "lm":
        return outside.lm_sources(CONFIG["lms"][wildcards.lm])
    return outside.noise_sources(recipe(stage, wildcards)) if stage in ("base", "train") else None


def split_file(split, suffix):
    """A file of a split in the folder of its corpus."""
    return f"{layout.corpus(split[0])}/{split[1]}.{suffix}"


def pretraining(key, suffix):
    """split_file of the splits that a base is pretrained on; nothing for an imported one."""

    def path(wildcards):
        pretrain = CONFIG["bases"][wildcards.base].get("pretrain")
        return split_file((pretrain["corpus"], pretrain[key]), suffix) if pretrain else []

    return quick(path)


def pretraining_lang(wildcards):
    """The manifest of the token set that a base is pretrained with; nothing for an imported one."""
    return base_lang(wildcards) if CONFIG["bases"][wildcards.base].get("pretrain") else []


def lang_sources(suffix):
    """split_file of every split that a token set is made from."""
    return quick(
        lambda wildcards: list(
            dict.fromkeys(split_file(split, suffix) for split in lang_splits(CONFIG, wildcards.lang))
        )
    )


def lm_sources(splits, suffix):
    """split_file of the splits that a language model is made from (lm_splits) or measured on (lm_dev)."""
    return quick(lambda wildcards: [split_file(split, suffix) for split in splits(CONFIG, wildcards.lm)])


def overlap_sources(suffix):
    """split_file of every split that affects the results of a task."""
    return quick(
        lambda wildcards: list(
            dict.fromkeys(split_file(s, suffix) for of in overlaps(CONFIG, wildcards.task).values() for s in of)
        )
    )


def overlap_options(wildcards):
    """`--split ROLE=index ...` of the overlap check."""
    roles = overlaps(CONFIG, wildcards.task)
    pairs = [(role, split_file(split, "index.tsv")) for role, of in roles.items() for split in of]
    return " ".join(f"--split {shlex.quote(f'{role}={index}')}" for role, index in pairs)


@quick
def base_lang(wildcards):
    """The manifest of the base's token set."""
    return f"{layout.lang(CONFIG['bases'][wildcards.base]['lang'])}/lang.json"


@quick
def task_lang(wildcards):
    """The same, for recognition; else nothing."""
    return base_lang(wildcards) if CONFIG["tasks"][wildcards.task]["type"] == "asr" else []


def features_file(base, split, suffix):
    """A file of the features of a split."""
    return f"{layout.features(base, split[0])}/{split[1]}.{suffix}"


def inputs_file(wildcards, split, suffix):
    """features_file of a split; its split_file for a control that takes the base's place and reads samples."""
    if CONFIG["methods"][wildcards.method].get("control") == MEAN_LOGMEL:
        return split_file(split, suffix)
    return features_file(wildcards.base, split, suffix)


def task_features(key, suffix):
    """features_file of the split that a task names as `key` (train, dev)."""
    return quick(lambda wildcards: inputs_file(wildcards, task_splits(CONFIG, wildcards.task)[key], suffix))


def untranscribed_features(suffix):
    """features_file of the splits of which a system learns only what its teacher computes."""

    def paths(wildcards):
        splits = untranscribed(CONFIG, System(wildcards.base, wildcards.task, wildcards.method))
        return [features_file(wildcards.base, split, suffix) for split in splits]

    return paths


def test_features(suffix):
    """features_file of the split that a decoding reads."""
    return quick(lambda wildcards: inputs_file(wildcards, slices.split(wildcards), suffix))


def calibration_features(suffix):
    """features_file of the split that `calibrate` names."""
    section = CONFIG.get("calibrate")
    return quick(lambda wildcards: features_file(wildcards.base, (section["corpus"], section["split"]), suffix))


FACTORISATIONS = {
    factorise_key(method["factorise"], start_share(method)): method
    for method in CONFIG["methods"].values()
    if method.get("factorise")
}


def moments(file):
    """A file of the calibration, if the factors depend on it; else nothing."""

    def path(wildcards):
        method = FACTORISATIONS[wildcards.factorisation]
        if not calibrated(method):
            return []
        return f"{layout.calibrate(wildcards.base, calibrate_key(method['factorise']))}/{file}"

    return quick(path)


def trial(suffix):
    """calibration_features, if the low-rank model is tried on them; else nothing."""

    def path(wildcards):
        section = FACTORISATIONS[wildcards.factorisation]["factorise"]
        return calibration_features(suffix)(wildcards) if slices.tries(section) else []

    return quick(path)


def truncation_moments(file):
    """A file of the calibration, if a training truncates factors that started from it; else nothing."""

    def path(wildcards):
        method = CONFIG["methods"][wildcards.method]
        if start_share(method) is None or not calibrated(method):
            return []
        return f"{layout.calibrate(wildcards.base, calibrate_key(method['factorise']))}/{file}"

    return path


def start_of(system, file=None):
    """The model that a system's training starts from: its manifest, or a file of its model folder."""
    method = CONFIG["methods"][system.method]
    section, start = method.get("factorise"), start_share(method)
    if section is None:
        folder, manifest = layout.base(system.base), "base.json"
    else:
        folder, manifest = layout.factorise(system.base, factorise_key(section, start)), "factorise.json"
    return f"{folder}/model/{file}" if file else f"{folder}/{manifest}"


def teacher_of(file):
    """A file of the model that a system learns from: its base, or another system; nothing without `distil`."""

    def path(wildcards):
        if CONFIG["methods"][wildcards.method].get("distil") is None:
            return []
        system = teacher(CONFIG, System(wildcards.base, wildcards.task, wildcards.method))
        if system is None:
            return f"{layout.base(wildcards.base)}/{file or 'base.json'}"
        return f"{layout.train(*system)}/{file or 'train.json'}"

    return path


def emissions(file, test=None):
    """A file of the stored network outputs on `test` (default: the wildcard), for decoders that read them; else nothing."""

    def path(wildcards):
        if not slices.reads_emissions(wildcards):
            return []
        system = wildcards.base, wildcards.task, wildcards.method
        return f"{layout.emissions(*system, test or wildcards.test)}/{file}"

    return quick(path)


@quick
def tuned(wildcards):
    """The manifest with the best values of a decoder that is tuned; else nothing."""
    if not slices.tunes(wildcards):
        return []
    return f"{layout.tune(wildcards.base, wildcards.task, wildcards.method, wildcards.decoder)}/tune.json"


def decoded_by_fused(test=None):
    """The manifests of the decodings, on `test` (default: the wildcard), of the systems that a back end reads."""

    def paths(wildcards):
        name, own = wildcards.backend, System(wildcards.base, wildcards.task, wildcards.method)
        decoder = backend_decoder(CONFIG, own.task, name)
        return [
            f"{layout.decode(*system, decoder, test or wildcards.test)}/decode.json"
            for system in fused(CONFIG, own, name)
        ]

    return quick(paths)


@quick
def scored(wildcards):
    """The manifest of what is scored: a decoding, or calibrated scores where a back end has the decoder's place."""
    stage = "apply" if wildcards.decoder in CONFIG["backends"] else "decode"
    names = wildcards.base, wildcards.task, wildcards.method, wildcards.decoder, wildcards.test
    return f"{getattr(layout, stage)(*names)}/{stage}.json"


def resource(name):
    """The manifest of the artefact that a decoder reads as `name` (lm, graph, rescore_lm), if it does; else nothing."""

    def path(wildcards):
        stage, *names = slices.resources(wildcards).get(name, (None,))
        return f"{getattr(layout, stage)(*names)}/{stage}.json" if stage else []

    return quick(path)


@quick
def graph_lm(wildcards):
    """The manifest of the n-gram in a graph; nothing without one."""
    named = slices.graph(wildcards).cfg["lm"]
    return f"{layout.lm(named)}/lm.json" if named else []


def stored_base(file):
    """A file of the base, for features that its front end computes; else nothing."""
    return quick(
        lambda wildcards: (
            [] if CONFIG["bases"][wildcards.base]["features"] == "waveform" else f"{layout.base(wildcards.base)}/{file}"
        )
    )


# ---- wildcards


def names(section):
    """Regular expression for the names in a section of the config: other targets do not exist."""
    return "|".join(map(re.escape, section)) or "(?!)"


wildcard_constraints:
    corpus=names(CONFIG["corpora"]),
    split=names(sorted({split for corpus in CONFIG["corpora"].values() for split in corpus["splits"]})),
    lang=names(CONFIG["langs"]),
    lm=names(CONFIG["lms"]),
    base=names(CONFIG["bases"]),
    task=names(CONFIG["tasks"]),
    method=names(CONFIG["methods"]),
    decoder=names(CONFIG["decoders"]),
    backend=names(CONFIG["backends"]),
    test=names(sorted({DEV, *(test for task in CONFIG["tasks"] for test in tests(CONFIG, task))})),
    calibration="[A-Za-z0-9-]+",
    factorisation=names(FACTORISATIONS),
    graph=names(sorted({graph for _, graph in slices.graphs()})),
    form="[a-z0-9]+",
