"""Read an experiment's config: the grid of systems, decoders and test sets, overrides, and names of artefacts.

The Snakefile imports this module (under SLURM once per job), so it uses only the standard library and loads in
milliseconds. The functions take a config that ``workflow.schema`` and ``workflow.checks`` have checked, with all
defaults.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Config = Mapping[str, Any]

DEV = "dev"
"""The name under which a task's dev split is decoded, like a test set."""


BASE = "base"
"""The value of ``distil.teacher`` that stands for the system's base."""


MEAN_LOGMEL = "mean-logmel"
"""The value of ``control`` that takes the place of the base."""


class ConfigError(ValueError):
    """An invalid setting. The message is one line with the key, the value, and what to write instead."""


class System(NamedTuple):
    """One point of the grid: a base, adapted to a task by a method."""

    base: str
    task: str
    method: str


class Result(NamedTuple):
    """A system, decoded by a decoder on a test set."""

    base: str
    task: str
    method: str
    decoder: str
    test: str

    @property
    def system(self) -> System:
        return System(self.base, self.task, self.method)


class Split(NamedTuple):
    """A split of a corpus."""

    corpus: str
    split: str


# -- the grid ----------------------------------------------------------------------------------------------------------


def systems(config: Config) -> list[System]:
    """The grid bases x tasks x methods, in the order of the lists under ``systems``."""
    grid = config["systems"]
    return [System(b, t, m) for b in grid["bases"] for t in grid["tasks"] for m in grid["methods"]]


def results(config: Config, schema: Mapping[str, Any] | None = None) -> list[Result]:
    """Every system with each of its task's decoders on each of its task's test sets.

    With ``schema``, only decoders of which the kind decodes the base's models (see ``fitting``).
    """
    found = []
    for system in systems(config):
        able = decoders(config, system.task) if schema is None else fitting(config, schema, system.base, system.task)
        found += [Result(*system, decoder, test) for decoder in able for test in tests(config, system.task)]
    return found


def fitting(config: Config, schema: Mapping[str, Any], base: str, task: str) -> list[str]:
    """The decoders of a task of which the kind decodes the base's models: ``beam`` of CTC has no use for a Whisper."""
    of = model_task(config, schema, base, task)
    kinds = {name: section.get("kind", name) for name, section in complete(config)["decoders"].items()}
    return [name for name in decoders(config, task) if f"decoder.{kinds[name]}.{of}" in schema["$defs"]]


def model_task(config: Config, schema: Mapping[str, Any], base: str, task: str) -> str:
    """What models of the base's family do in a task: ctc, seq2seq or classify."""
    if config["tasks"][task]["type"] == "lid":
        return "classify"
    return schema["families"][config["bases"][base]["family"]]["recognises_by"]


def tests(config: Config, task: str) -> dict[str, Split]:
    """Name -> split of the test sets of a task, in their order.

    The key ``test`` may be a split of the task's corpus, a list of these, or name -> {corpus, split}. Several test sets
    may be pieces of one split (``test_cut``).
    """
    section = config["tasks"][task]
    test, corpus = section["test"], section["corpus"]
    if isinstance(test, Mapping):
        return {name: Split(of.get("corpus") or corpus, of["split"]) for name, of in test.items()}
    return {split: Split(corpus, split) for split in ([test] if isinstance(test, str) else test)}


def test_cut(config: Config, task: str, test: str) -> dict[str, Any] | None:
    """How a test set cuts the utterances of its split: seconds, place, shorter, seed; None: it does not."""
    section = config["tasks"][task]["test"]
    own = section.get(test) if isinstance(section, Mapping) else None
    if own is None or own.get("seconds") is None:
        return None
    seed = {"seed": config["seed"]} if own.get("place") == "random" else {}
    return {key: own[key] for key in ("seconds", "place", "shorter")} | seed


def pieces(config: Config, task: str) -> dict[str, str]:
    """Test set -> corpus/split, of the test sets of splits that at least one of them cuts."""
    every = tests(config, task)
    cut = {split for test, split in every.items() if test_cut(config, task, test) is not None}
    return {test: "/".join(split) for test, split in every.items() if split in cut}


def decoded_split(config: Config, task: str, test: str) -> Split:
    """The split of one of a task's test sets, or of ``dev``."""
    return task_splits(config, task)["dev"] if test == DEV else tests(config, task)[test]


def task_splits(config: Config, task: str) -> dict[str, Split]:
    """``train`` and ``dev`` of a task."""
    section = config["tasks"][task]
    return {key: Split(section["corpus"], section[key]) for key in ("train", "dev")}


def decoders(config: Config, task: str) -> list[str]:
    """Names of the decoders of a task; by default the one of its type."""
    section = config["tasks"][task]
    return section.get("decoders") or [DEFAULT_DECODERS[section["type"]]]


def complete(config: Config) -> Config:
    """The config without sweeps, and with the decoders that always exist."""
    from lowrank_speech.workflow.sweeps import expand  # imports this module

    config = expand(config)
    always = {name: {"kind": name} for name in DEFAULT_DECODERS.values()}
    return {**config, "decoders": {**always, **(config.get("decoders") or {})}}


DEFAULT_DECODERS = {"asr": "greedy", "lid": "scores"}


# -- back ends ---------------------------------------------------------------------------------------------------------


def backends(config: Config, task: str) -> list[str]:
    """Names of the back ends of a task."""
    return list(config["tasks"][task].get("backends") or ())


def fused(config: Config, system: System, backend: str) -> list[System]:
    """The systems that a back end of ``system`` reads: that one, or those that it fuses (method, or base/method)."""
    named = config["backends"][backend].get("systems")
    if not named:
        return [system]
    pairs = [name.rpartition("/") for name in named]
    return [System(base or system.base, system.task, method) for base, _, method in pairs]


def backend_decoder(config: Config, task: str, backend: str) -> str:
    """The decoder whose scores a back end reads: by default the first one of the task."""
    return config["backends"][backend].get("decoder") or decoders(config, task)[0]


def backed(config: Config, system: System) -> list[str]:
    """The back ends with results of ``system``: a fusion has them beside the first of its systems."""
    return [name for name in backends(config, system.task) if fused(config, system, name)[0] == system]


def calibrated_results(config: Config) -> list[Result]:
    """Every system with each of its back ends, in place of the decoder, on each of its task's test sets."""
    return [
        Result(*system, backend, test)
        for system in systems(config)
        for backend in backed(config, system)
        for test in tests(config, system.task)
    ]


def overlaps(config: Config, task: str) -> dict[str, list[Split]]:
    """Role -> the splits that affect a task's results.

    Roles: train, dev, test, pretrain; if there are any, untranscribed and lm (the text of language models).
    """
    roles = {name: [split] for name, split in task_splits(config, task).items()}
    roles["test"] = list(dict.fromkeys(tests(config, task).values()))
    scratch = [config["bases"][base] for base in config["systems"]["bases"]]
    found = [Split(b["pretrain"]["corpus"], b["pretrain"]["train"]) for b in scratch if b["source"] == "scratch"]
    roles["pretrain"] = sorted(set(found) - {roles["train"][0]})
    heard = sorted({split for s in systems(config) if s.task == task for split in untranscribed(config, s)})
    read = sorted({split for lm in lms_used(config, [task]) for split in lm_splits(config, lm)} - {roles["train"][0]})
    return roles | ({"untranscribed": heard} if heard else {}) | ({"lm": read} if read else {})


def splits_used(config: Config) -> list[Split]:
    """All splits that the grid needs, sorted.

    They are those of tasks, pretraining, token sets, language models, calibration and distillation.
    """
    grid, found = config["systems"], set()
    for task in grid["tasks"]:
        found.update(task_splits(config, task).values(), tests(config, task).values())
    for name in grid["bases"]:
        base = config["bases"][name]
        if base["source"] == "scratch":
            found.update(Split(base["pretrain"]["corpus"], base["pretrain"][key]) for key in ("train", "dev"))
        if needs_lang(config, name):
            found.update(lang_splits(config, base["lang"]))
    for lm in lms_used(config, grid["tasks"]):
        found.update([*lm_splits(config, lm), *lm_dev(config, lm)])
    for system in systems(config):
        found.update(untranscribed(config, system))
    if any(calibrated(config["methods"][method]) for method in grid["methods"]):
        found.add(Split(config["calibrate"]["corpus"], config["calibrate"]["split"]))
    return sorted(found)


def lang_splits(config: Config, lang: str) -> Iterator[Split]:
    """The splits that a token set is made from."""
    section = config["langs"][lang]
    for corpus in section.get("corpora") or ():
        for split in section["splits"]:
            yield Split(corpus, split)


LMS = ("lm", "rescore_lm")
"""Keys of a decoder that name a language model."""


def lms_used(config: Config, tasks: Iterable[str]) -> list[str]:
    """The language models that the decoders of ``tasks`` name. No other one is made."""
    shared, defined = (config.get(name) or {} for name in ("decode", "decoders"))
    names = {name for task in tasks if config["tasks"][task]["type"] == "asr" for name in decoders(config, task)}
    sections = [shared | (defined.get(name) or {}) for name in names]
    used = {section.get(key) for section in sections for key in LMS}
    return [name for name in config.get("lms") or {} if name in used]


def lm_splits(config: Config, lm: str) -> list[Split]:
    """The splits that a language model is made from: by default those of its token set; none for `arpa`."""
    section = config["lms"][lm]
    if section.get("arpa") is not None:
        return []
    lang = config["langs"][section["lang"]]
    corpora, splits = (lang.get(key) if section.get(key) is None else section[key] for key in ("corpora", "splits"))
    return [Split(corpus, split) for corpus in corpora or () for split in splits or ()]


def lm_dev(config: Config, lm: str) -> list[Split]:
    """The split on which the perplexity of a language model is measured, if there is one."""
    dev = config["lms"][lm].get("dev")
    return [] if dev is None else [Split(dev["corpus"], dev["split"])]


def needs_lang(config: Config, base: str) -> bool:
    """Whether the grid needs the base's token set: to pretrain it, or to recognise speech."""
    scratch = config["bases"][base]["source"] == "scratch"
    return scratch or any(config["tasks"][task]["type"] == "asr" for task in config["systems"]["tasks"])


def teacher(config: Config, system: System) -> System | None:
    """The system that is the teacher of ``system``; None without one, or if the base is the teacher."""
    name = (config["methods"][system.method].get("distil") or {}).get("teacher", BASE)
    return None if name == BASE else system._replace(method=name)


def untranscribed(config: Config, system: System) -> list[Split]:
    """The splits of which ``system`` learns only what its teacher computes (``distil.untranscribed``)."""
    given = (config["methods"][system.method].get("distil") or {}).get("untranscribed") or []
    corpus = config["tasks"][system.task]["corpus"]
    return [Split(s.get("corpus") or corpus, s["split"]) for s in ([given] if isinstance(given, Mapping) else given)]


def head(config: Config, system: System) -> dict[str, Any] | None:
    """The section of a system's classifier, the method's or the task's; None: the default head, or recognition."""
    task = config["tasks"][system.task]
    if task["type"] != "lid":
        return None
    return config["methods"][system.method].get("head") or task.get("head")


# -- overrides ---------------------------------------------------------------------------------------------------------


def deep_merge(below: Any, above: Any) -> Any:
    """Override ``below`` with ``above``: mappings key by key; any other value (None, lists) replaces the old one.

    >>> deep_merge({"lr": 1, "spec_augment": {"time_masks": 2}}, {"spec_augment": {"time_masks": 3, "time_width": 5}})
    {'lr': 1, 'spec_augment': {'time_masks': 3, 'time_width': 5}}
    """
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{key: deep_merge(below.get(key), value) for key, value in above.items()}}


def training(config: Config, system: System) -> dict[str, Any]:
    """The training keys of one system: ``training`` < that of the base < that of the task < that of the method."""
    merged = dict(config.get("training") or {})
    for section, name in zip(("bases", "tasks", "methods"), system, strict=True):
        merged = deep_merge(merged, config[section][name].get("training") or {})
    return merged


# -- shared artefacts --------------------------------------------------------------------------------------------------


CALIBRATED = ("activation", "two-sided")
"""Values of ``factorise.init`` that need calibration speech."""


def calibrated(method: Mapping[str, Any]) -> bool:
    """Whether a method's factors depend on calibration speech (stage calibrate)."""
    section = method.get("factorise") or {}
    return section.get("init") in CALIBRATED or bool(section.get("allocate"))


def start_share(method: Mapping[str, Any]) -> float | None:
    """The share of the full ranks with which a method starts; None: with the ranks of ``factorise``."""
    return (method.get("progressive") or {}).get("start")


def factorise_key(section: Mapping[str, Any], start: float | None = None) -> str:
    """Folder name of the low-rank model of a ``factorise`` section, such as ``rank512-1f0c9a3e``.

    ``start``: see ``start_share``.

    The name depends only on the section. So methods with equal sections share one model, and renaming, reordering or
    adding methods reruns nothing.
    """
    wish = next((key for key in WISHES if section.get(key) is not None), "")
    return f"{wish}{section.get(wish, '')}-{_digest(section if start is None else [section, start])}"


def calibrate_key(section: Mapping[str, Any]) -> str:
    """Folder name of the moments for a ``factorise`` section: sections with the same layers (and init) share them."""
    layers = section.get("layers")
    seen = {"layers": layers, "gradients": True} if gradients(section) else layers
    readable = re.sub(r"[^A-Za-z0-9]+", "-", layers) if isinstance(layers, str) else "layers"
    return f"{readable.strip('-') or 'layers'}-{_digest(seen)}"


def gradients(section: Mapping[str, Any]) -> bool:
    """Whether the calibration for a ``factorise`` section needs the gradients of the layers' outputs."""
    return section.get("init") == "two-sided"


def graph_key(section: Mapping[str, Any]) -> str:
    """Folder name of the graph of a decoder, such as ``hlg-words3-1f0c9a3e``: decoders with the same graph share it."""
    seen = {name: section.get(name) for name in GRAPH}
    return "-".join(filter(None, (seen["graph"], seen["lm"], _digest(seen))))


GRAPH = ("graph", "lm", "lexicon")
"""Keys of a decoder that define its graph, apart from the token set."""

WISHES = ("rank", "fraction", "keep", "energy", "reduction")
"""Ways to set the size of a factorised layer; a ``factorise`` section gives exactly one."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no white space: equal settings give equal strings, whatever their order in YAML."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:8]
