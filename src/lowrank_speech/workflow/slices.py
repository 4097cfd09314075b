"""The slice of the config for each stage: exactly the keys that it uses, so that it reruns if one of them changes.

``Slices(config, schema).<stage>(wildcards)`` returns two mappings: ``cfg``, the keys that affect the result, with all
defaults, and ``runtime``, the keys that do not. ``wildcards`` has the attributes that name the artefact (Snakemake's
own, or a similar object). Equal settings give equal slices, however they are written.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lowrank_speech.workflow.check_heads import constrained
from lowrank_speech.workflow.config import (
    GRAPH,
    MEAN_LOGMEL,
    Config,
    System,
    backed,
    backend_decoder,
    calibrate_key,
    calibrated,
    canonical_json,
    decoded_split,
    decoders,
    deep_merge,
    factorise_key,
    fitting,
    fused,
    gradients,
    graph_key,
    head,
    model_task,
    overlaps,
    pieces,
    results,
    splits_used,
    start_share,
    systems,
    test_cut,
    tests,
    training,
)
from lowrank_speech.workflow.schema import Schema, resolve, runtime_keys, section

Keys = dict[str, Any]


NAMES = {
    "corpus": ("corpus", "split"),
    "overlap": ("task",),
    "lang": ("lang",),
    "lm": ("lm",),
    "features": ("base",),
    "base": ("base",),
    "calibrate": ("base", "calibration"),
    "factorise": ("base", "factorisation"),
    "train": ("base", "task", "method"),
    "export": ("base", "task", "method", "form"),
    "emissions": ("base", "task"),
    "tune": ("base", "task", "method", "decoder"),
    "decode": ("base", "task", "method", "decoder", "test"),
    "graph": ("lang", "graph"),
    "backend": ("base", "task", "method", "backend"),
    "apply": (),
    "score": ("task",),
    "report": (),
}
"""Stage -> the wildcards on which its slice and its code depend. Large grids have few different slices."""


@dataclass(frozen=True)
class Slice:
    """The values of ``--cfg`` and ``--runtime``."""

    cfg: Keys
    runtime: Keys

    @functools.cached_property
    def cfg_json(self) -> str:
        """``cfg`` as canonical JSON."""
        return canonical_json(self.cfg)

    @functools.cached_property
    def runtime_json(self) -> str:
        """``runtime`` as canonical JSON."""
        return canonical_json(self.runtime)


def once(method: Callable[..., Slice]) -> Callable[..., Slice]:
    """Compute a slice once for all jobs that share it."""
    names = NAMES[method.__name__]

    @functools.wraps(method)
    def known(self: "Slices", wildcards: Any = None) -> Slice:
        key = (method.__name__, *(getattr(wildcards, name) for name in names))
        if key not in self.known:
            self.known[key] = method(self, wildcards)
        return self.known[key]

    return known


class Slices:
    """The slices of a config that the schema has checked and resolved."""

    def __init__(self, config: Config, schema: Schema):
        self.config, self.schema = config, schema
        self.known: dict[tuple[str, ...], Slice] = {}
        self._graphs: dict[tuple[str, str], Keys] | None = None

    # -- data ----------------------------------------------------------------------------------------------------------

    @once
    def corpus(self, wildcards: Any) -> Slice:
        """One split: its own keys and those of the whole corpus. The seed is for parts and synthesis."""
        corpus = self.config["corpora"][wildcards.corpus]
        own = {wildcards.split: corpus["splits"][wildcards.split]}
        shared = {"held_out": held_out(corpus)} if corpus["kind"] == "espeak" else {}
        cfg = {**_without(corpus, WATCHING), "splits": own, **shared}
        return Slice({"seed": self.config["seed"], "corpus": cfg}, _only(corpus, WATCHING))

    @once
    def overlap(self, wildcards: Any) -> Slice:
        """Which splits play which role in a task."""
        roles, task = overlaps(self.config, wildcards.task), self.config["tasks"][wildcards.task]
        cfg: Keys = {"roles": {role: ["/".join(split) for split in of] for role, of in roles.items()}}
        if task["type"] == "lid":
            cfg["apart"] = ["speakers", "sources", "sessions"]
            if task["allow_shared"]:
                cfg["allow_shared"] = {what: sorted(of) for what, of in task["allow_shared"].items() if of}
        return Slice(cfg, {})

    @once
    def lang(self, wildcards: Any) -> Slice:
        """The token set's own keys; its corpora and splits come as files."""
        lang = _without(self.config["langs"][wildcards.lang], ("corpora", "splits"))
        return Slice({"seed": self.config["seed"], "lang": lang}, {})

    @once
    def lm(self, wildcards: Any) -> Slice:
        """The language model's own keys; its token set and splits come as files."""
        return Slice({"lm": _without(self.config["lms"][wildcards.lm], ("lang", "corpora", "splits", "dev"))}, {})

    @once
    def features(self, wildcards: Any) -> Slice:
        """The kind of features, and their number format unless they are waveforms, which are not stored."""
        base = self.config["bases"][wildcards.base]
        stored = {} if base["features"] == "waveform" else {"dtype": base["features_dtype"] or "float32"}
        return Slice({"kind": base["features"], **stored}, {})

    # -- models --------------------------------------------------------------------------------------------------------

    @once
    def base(self, wildcards: Any) -> Slice:
        """Source and window; for `source: scratch` also the model and the recipe of its pretraining."""
        base, runtime = self.config["bases"][wildcards.base], {}
        cfg = {"seed": self.config["seed"], **_only(base, ("family", "source"))}
        if base["source"] == "scratch":
            recipe = resolve(_without(base["pretrain"], ("corpus", "train", "dev")), *self._at("training"))
            recipe, runtime = self._apart("training", _used(recipe))
            cfg |= {**_only(base, ("model", "front_end")), "pretrain": recipe}
        else:
            cfg |= _only(base, ("revision", "window"))
        return Slice(cfg, runtime)

    @once
    def calibrate(self, wildcards: Any) -> Slice:
        """How to calibrate, and which layers: those of the factorise sections that share this calibration."""
        sections = (m["factorise"] for m in self.config["methods"].values() if calibrated(m))
        found = next(s for s in sections if calibrate_key(s) == wildcards.calibration)
        own, runtime = self._apart("calibrate", _without(self.config["calibrate"], ("corpus", "split", "trial")))
        asked = {"layers": found["layers"]} | ({"gradients": True} if gradients(found) else {})
        return Slice({"seed": self.config["seed"], **asked, **own}, runtime)

    @once
    def factorise(self, wildcards: Any) -> Slice:
        """The factorise section that the folder is named after, the ranks to start with, the utterances for trials."""
        given = ((m["factorise"], start_share(m)) for m in self.config["methods"].values() if m.get("factorise"))
        found, start = next(pair for pair in given if factorise_key(*pair) == wildcards.factorisation)
        cfg = {"seed": self.config["seed"], "factorise": found} | ({} if start is None else {"start": start})
        if not self.tries(found):
            return Slice(cfg, {})
        own, runtime = self._apart("calibrate", self.config["calibrate"])
        return Slice({**cfg, "trial": _trial(own)}, runtime)

    def tries(self, section: Mapping[str, Any]) -> bool:
        """Whether the stage factorise reads calibration speech."""
        return calibrated({"factorise": section}) and bool(self.config["calibrate"]["trial"])

    @once
    def train(self, wildcards: Any) -> Slice:
        """The task, the way of adapting, and the recipe with all overrides."""
        system = System(wildcards.base, wildcards.task, wildcards.method)
        method, task = self.config["methods"][system.method], self.config["tasks"][system.task]
        if method.get("control") == MEAN_LOGMEL:
            seed = self.config["seed"] if method.get("seed") is None else method["seed"]
            own = {"seed": seed, "task": self._task(system.task), "adapt": "none", "control": MEAN_LOGMEL}
            return Slice(own, {})
        recipe, runtime = self._apart("training", _used(self.recipe(system)))
        if task["type"] != "asr":
            recipe = _without(recipe, RECOGNITION_ONLY)
        cfg = {
            "seed": self.config["seed"] if method.get("seed") is None else method["seed"],
            "task": self._task(system.task, training=True),
            "adapt": method["adapt"],
            "training": recipe,
        }
        if method.get("control"):
            cfg |= {"control": method["control"], "shuffle": method["shuffle"] or "utterances"}
        if method["adapt"] == "lora":
            cfg["lora"] = method["lora"]
        if (own := head(self.config, system)) is not None:
            cfg["head"] = own
        if (method["adapt"] == "full" and method.get("factorise")) or constrained(own):
            cfg["constraint"] = resolve(method.get("constraint") or {}, *self._at("constraint"))
        if method.get("progressive"):
            cfg["progressive"] = method["progressive"]
        if method.get("distil"):
            cfg["distil"] = _without(method["distil"], ("untranscribed",))  # its splits come as files
        return Slice(cfg, runtime)

    @once
    def export(self, wildcards: Any) -> Slice:
        """The format, from the path that was asked for."""
        return Slice({"format": wildcards.form}, {})

    # -- results -------------------------------------------------------------------------------------------------------

    @once
    def emissions(self, wildcards: Any) -> Slice:
        """How emissions are stored, and the size of batches."""
        own, runtime = self._apart("emissions", self._shared_decode("emissions"))
        return Slice({"emissions": own}, runtime)

    @once
    def decode(self, wildcards: Any) -> Slice:
        """The task, and the keys of the decoder that its kind uses on models of the base's family; pieces of a test."""
        found = self.decoding(wildcards)
        cut = test_cut(self.config, wildcards.task, wildcards.test)
        return found if cut is None else Slice({**found.cfg, "cut": cut}, found.runtime)

    def decoding(self, wildcards: Any) -> Slice:
        """The slice of the stage decode without what only one test set has."""
        key = ("decoding", wildcards.base, wildcards.task, wildcards.decoder)
        if key not in self.known:
            self.known[key] = self._decoding(wildcards)
        return self.known[key]

    def _decoding(self, wildcards: Any) -> Slice:
        name = self.decoder_section(wildcards)
        given = deep_merge(self.config["decode"], self.config["decoders"][wildcards.decoder])
        known = section(self.schema, name)["properties"]
        own = resolve({key: value for key, value in given.items() if key in known}, *self._at(name))
        own = {key: value for key, value in own.items() if key not in DECODER_VARIANTS or value is not None}
        own, runtime = self._apart(name, own)
        return Slice({"task": self._task(wildcards.task), "decoder": own}, runtime)

    @once
    def graph(self, wildcards: Any) -> Slice:
        """What defines the graph that the folder is named after."""
        return Slice(self.graphs()[wildcards.lang, wildcards.graph], {})

    @once
    def tune(self, wildcards: Any) -> Slice:
        """The decoder, the grid of its values, and how words are compared."""
        found = self.decoding(wildcards)
        compared = {key: self.config["score"][key] for key in ("normaliser", "numbers")}
        return Slice({**found.cfg, "tune": self.tunes(wildcards), **compared}, found.runtime)

    @once
    def backend(self, wildcards: Any) -> Slice:
        """The back end's own keys, and the names of the systems that it reads."""
        section, system = self.config["backends"][wildcards.backend], System(*(getattr(wildcards, n) for n in SYSTEM))
        names = ["/".join(one) for one in fused(self.config, system, wildcards.backend)]
        own = _without(section, ("decoder", "least"))
        return Slice({"backend": own, "systems": names, "least": section["least"]}, {})

    @once
    def apply(self, wildcards: Any = None) -> Slice:
        """Nothing: the trained back end comes as a file."""
        return Slice({}, {})

    @once
    def score(self, wildcards: Any) -> Slice:
        """The type of the task and how to score it."""
        kind = self.config["tasks"][wildcards.task]["type"]
        others = {key for other, keys in SCORED.items() if other != kind for key in keys}
        own = _without(self.config["score"], others)
        return Slice({"seed": self.config["seed"], "type": kind, "score": own}, {})

    @once
    def report(self, wildcards: Any = None) -> Slice:
        """The title, the systems in their order (and where their low-rank model lies), the corpora to describe."""
        rows = []
        for system in systems(self.config):
            method = self.config["methods"][system.method]
            factorise = method.get("factorise")
            task = self.config["tasks"][system.task]
            shared = {"factorisation": factorise_key(factorise, start_share(method))} if factorise else {}
            able = fitting(self.config, self.schema, system.base, system.task)
            if able != decoders(self.config, system.task):
                shared["decoders"] = able
            if own := backed(self.config, system):
                shared["backends"] = {name: backend_decoder(self.config, system.task, name) for name in own}
            rows.append({**system._asdict(), "type": task["type"], **shared})
        tasks = {
            task: {"decoders": decoders(self.config, task), "tests": list(tests(self.config, task))}
            | ({"pieces": cut} if (cut := pieces(self.config, task)) else {})
            for task in self.config["systems"]["tasks"]
        }
        corpora: dict[str, list[str]] = {}
        for corpus, split in splits_used(self.config):
            corpora.setdefault(corpus, []).append(split)
        result = {"experiment": self.config["experiment"], "systems": rows, "tasks": tasks, "corpora": corpora}
        return Slice(result | {"report": self.config["report"]}, {})

    # -- for the rules -------------------------------------------------------------------------------------------------

    def recipe(self, system: System) -> Keys:
        """The training keys of a system, with overrides and defaults."""
        return resolve(training(self.config, system), *self._at("training"))

    def decoder_section(self, wildcards: Any) -> str:
        """Name of the schema's section for a decoder's kind on models that the base's family trains for the task."""
        kind = self.config["decoders"][wildcards.decoder]["kind"]
        return f"decoder.{kind}.{self.model_task(wildcards)}"

    def model_task(self, wildcards: Any) -> str:
        """What models of the base's family do in a task: ctc, seq2seq or classify."""
        return model_task(self.config, self.schema, wildcards.base, wildcards.task)

    def reads_emissions(self, wildcards: Any) -> bool:
        """Whether a decoder reads stored network outputs instead of the model."""
        return bool(section(self.schema, self.decoder_section(wildcards)).get("emissions"))

    def resources(self, wildcards: Any) -> dict[str, tuple[str, ...]]:
        """Resource that a decoder reads -> the stage that makes it, and the names in its path."""
        keys, lang = self.decoding(wildcards).cfg["decoder"], self.config["bases"][wildcards.base].get("lang")
        found = {}
        for name in section(self.schema, self.decoder_section(wildcards)).get("resources", ()):
            if name == "graph":
                found[name] = ("graph", lang, graph_key(keys))
            elif keys.get(name) is not None:
                found[name] = ("lm", keys[name])
        return found

    def graphs(self) -> dict[tuple[str, str], Keys]:
        """Token set and ``graph_key`` of every graph that a decoder of the grid searches -> what defines the graph."""
        if self._graphs is None:
            self._graphs = {}
            for result in results(self.config, self.schema):
                found = self.resources(result).get("graph")
                if found is not None:
                    self._graphs[found[1:]] = _only(self.decoding(result).cfg["decoder"], GRAPH)
        return self._graphs

    def tunes(self, wildcards: Any) -> dict[str, list[float]]:
        """The grid of a decoder; empty: it is not tuned. Without keys that only models of other families have."""
        decoder, own = self.config["decoders"][wildcards.decoder], self.decoder_section(wildcards)
        kinds = {name: part for name, part in self.schema["$defs"].items() if name.startswith(own.rpartition(".")[0])}
        others = {key for name, part in kinds.items() if name != own for key in part["properties"]}
        unused = others - set(kinds[own]["properties"])
        given = decoder.get("tune") or {}
        return {key: sorted(map(float, values)) for key, values in given.items() if key not in unused}

    def split(self, wildcards: Any) -> tuple[str, str]:
        """Corpus and split that a decoding reads."""
        return decoded_split(self.config, wildcards.task, wildcards.test)

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _at(self, name: str) -> tuple[Schema, Schema]:
        return section(self.schema, name), self.schema

    def _apart(self, name: str, value: Keys) -> tuple[Keys, Keys]:
        """``value`` without its runtime keys; the section ``runtime``, overridden by those keys that are not null."""
        keys = runtime_keys(section(self.schema, name), self.schema)
        common = {key: self.config["runtime"][key] for key in keys}
        own = {key: value[key] for key in keys if value.get(key) is not None}
        return _without(value, keys), common | own

    def _shared_decode(self, name: str) -> Keys:
        known = section(self.schema, name)["properties"]
        return resolve({k: v for k, v in self.config["decode"].items() if k in known}, *self._at(name))

    def _task(self, task: str, training: bool = False) -> Keys:
        """What a stage must know of the task. Only ``training`` crops."""
        found = _only(self.config["tasks"][task], ("type", "languages", "segment"))
        if channel := self.config["tasks"][task]["channel"]:
            found["channel"] = channel
        segment = found.get("segment")
        if segment and not (training and segment["crop"]):
            found["segment"] = _without(segment, ("crop",))
        return found


SYSTEM = System._fields

DECODER_VARIANTS = ("out_of_set",)
"""Keys of decoders that turn on a variant of the task; null turns it off."""

WATCHING = ("track",)
"""Keys of a corpus that say how changed audio is detected."""

RECOGNITION_ONLY = ("ctc", "lfmmi", "ctc_weight", "language_weight")
"""Keys of a recipe that language recognition does not use."""

CTC_VARIANTS = ("prior_scale", "delay_penalty")
"""Keys of ``ctc`` that turn on a variant of the loss; 0 turns it off."""

SCORED = {
    "asr": ("characters", "normaliser", "numbers", "word_bins", "second_bins", "confusions", "worst"),
    "lid": ("minimum", "eer", "eer_over", "p_target", "c_miss", "c_fa", "durations"),
}
"""Keys of ``score`` that concern one type of task; systems of the other type do not depend on them."""


def held_out(corpus: Mapping[str, Any]) -> dict[str, float]:
    """Held-out splits of a synthesised corpus, which share no sentence with another split -> share of sentences."""
    given, splits = corpus.get("held_out"), corpus["splits"]
    if isinstance(given, Mapping):
        return dict(given)
    names = [name for name in ("dev", "test") if name in splits] if given is None else given
    return {name: splits[name]["share"] for name in names}


def _only(keys: Mapping[str, Any], wanted: Iterable[str]) -> Keys:
    return {key: keys[key] for key in wanted if key in keys}


def _without(keys: Mapping[str, Any], unwanted: Iterable[str]) -> Keys:
    return {key: value for key, value in keys.items() if key not in set(unwanted)}


def _used(recipe: Keys) -> Keys:
    """A recipe without the keys of losses, and of variants of CTC, that it does not use."""
    ctc = {key: value for key, value in recipe["ctc"].items() if key not in CTC_VARIANTS or value}
    return _without({**recipe, "ctc": ctc}, {"lfmmi", "aam"} - {recipe["loss"]})


def _trial(calibrate: Mapping[str, Any]) -> dict[str, Any]:
    """The utterances that the stage factorise reads, beside those that calibration has seen."""
    return {"utterances": calibrate["trial"], "segment": calibrate["segment"]}
