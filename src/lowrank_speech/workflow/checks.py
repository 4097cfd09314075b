"""Check what a schema cannot: that names exist, that settings go together, that test data do not leak.

These checks run before the first job. They look at the config, and at the local folders that it names. They take the
config as it was written; ``experiment.check`` then reads every section with the class of its stage.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lowrank_speech import published
from lowrank_speech.workflow import check_heads
from lowrank_speech.workflow.config import (
    BASE,
    CALIBRATED,
    DEFAULT_DECODERS,
    DEV,
    LMS,
    WISHES,
    Config,
    ConfigError,
    Split,
    System,
    calibrated,
    decoders,
    fitting,
    head,
    lang_splits,
    lm_dev,
    lm_splits,
    model_task,
    systems,
    task_splits,
    teacher,
    tests,
    training,
    untranscribed,
)
from lowrank_speech.workflow.schema import Schema, nearest

_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
POSITIONS = 50
"""Positions of Whisper's encoder in a second."""


def check(config: Config, schema: Schema) -> None:
    """Raise ConfigError for the first unknown name or invalid combination of settings."""
    for name in config.get("langs", ()):
        _check_lang(config, name)
    for name in config.get("lms", ()):
        _check_lm(config, name)
    for name in config["bases"]:
        _check_base(config, name, schema["families"])
        if (recipe := config["bases"][name].get("pretrain")) is not None:
            where, task = f"bases.{name}.pretrain", schema["families"][config["bases"][name]["family"]]["recognises_by"]
            _check_loss(where, f"the base {name}", recipe, task, schema)
    for name in config["tasks"]:
        _check_task(config, name, schema)
    for name in config["methods"]:
        _check_method(config, name)
    if "calibrate" in config:
        _check_calibrate(config)
    for section in ("bases", "tasks", "methods"):
        for name in config["systems"][section]:
            _known(f"systems.{section}", name, config[section])
    against = (config.get("report") or {}).get("against")
    if against is not None:
        _known("report.against", against, config["systems"]["methods"], "systems.methods: ")
    for system in systems(config):
        _check_system(config, system, schema["families"])
        _check_decoders(config, system, schema)
        recognises = schema["families"][config["bases"][system.base]["family"]]["recognises_by"]
        task = recognises if config["tasks"][system.task]["type"] == "asr" else "classify"
        _check_loss("training", f"the system {'/'.join(system)}", training(config, system), task, schema)
    check_heads.check(config, schema["families"])


def _known(where: str, value: str, legal: Iterable[str], what: str = "") -> None:
    if value not in legal:
        shown = f"expected one of {what}{', '.join(legal)}" if legal else "none is defined"
        raise ConfigError(f"{where}: {value!r} does not exist; {shown}{nearest(value, legal)}")


def _known_split(config: Config, where: str, split: Split, key: str) -> None:
    _known(f"{where}.corpus", split.corpus, config["corpora"])
    legal = config["corpora"][split.corpus]["splits"]
    _known(f"{where}.{key}", split.split, legal, f"the splits of corpora.{split.corpus}: ")


def _roles(config: Config) -> dict[Split, str]:
    """Split -> its role in the first task that uses it as dev or test split."""
    found: dict[Split, str] = {}
    for task in config["tasks"]:
        for split in tests(config, task).values():
            found[split] = f"the test split of tasks.{task}"
        found.setdefault(task_splits(config, task)["dev"], f"the dev split of tasks.{task}")
    return found


def _check_decoders(config: Config, system: System, schema: Schema) -> None:
    """Refuse a system that none of its task's decoders decodes."""
    if not fitting(config, schema, system.base, system.task):
        of, where = model_task(config, schema, system.base, system.task), f"tasks.{system.task}.decoders"
        able = sorted({kind for kind in schema["decoders"] if f"decoder.{kind}.{of}" in schema["$defs"]})
        raise ConfigError(
            f"{where}: none of {', '.join(decoders(config, system.task))} decodes the {of} model of the base "
            f"{system.base}; add one of a kind that does: {', '.join(able)}"
        )


# -- token sets and bases ----------------------------------------------------------------------------------------------


def _check_lang(config: Config, name: str) -> None:
    where, roles = f"langs.{name}", _roles(config)
    for corpus in config["langs"][name].get("corpora", ()):
        _known(f"{where}.corpora", corpus, config["corpora"])
    for split in lang_splits(config, name):
        _known_split(config, where, split, "splits")
        if split in roles:
            raise ConfigError(
                f"{where}.splits: {split.split!r} is {roles[split]}; token sets may only read training transcripts: "
                f"remove it"
            )


def _check_lm(config: Config, name: str) -> None:
    """Refuse unknown names, text of dev or test splits, and settings of text for a model that is taken as it is."""
    section, where = config["lms"][name], f"lms.{name}"
    _known(f"{where}.lang", section["lang"], config.get("langs", {}))
    kind = config["langs"][section["lang"]]["kind"]
    if section.get("unit") == "token" and kind == "whisper":
        raise ConfigError(
            f"{where}.unit: token needs a token set of kind char or sentencepiece, but langs.{section['lang']} is "
            f"Whisper's own tokenizer; use unit: word or character"
        )
    own = next((key for key in ("corpora", "splits") if section.get(key) is not None), None)
    if section.get("arpa") is not None and own is not None:
        raise ConfigError(f"{where}.{own}: the model {section['arpa']} is taken as it is; remove {own}, or remove arpa")
    for corpus in section.get("corpora") or ():
        _known(f"{where}.corpora", corpus, config["corpora"])
    roles, splits, dev = _roles(config), lm_splits(config, name), lm_dev(config, name)
    for split in splits:
        _known_split(config, where, split, "splits")
        if split in roles:
            raise ConfigError(
                f"{where}.splits: {split.split!r} is {roles[split]}; language models may only read training "
                f"transcripts: remove it"
            )
    if not splits and not section.get("text") and section.get("arpa") is None:
        raise ConfigError(
            f"{where}: there is nothing to make it from; give corpora and splits, text files (`text`), or a model "
            f"(`arpa`)"
        )
    for split in dev:
        _known_split(config, f"{where}.dev", split, "split")
        if roles.get(split, "").startswith("the test"):
            raise ConfigError(f"{where}.dev.split: {split.split!r} is {roles[split]}; choose a dev split")
        if split in splits:
            raise ConfigError(
                f"{where}.dev.split: the model is made from {split.split!r} of corpora.{split.corpus}; its perplexity "
                f"there would mean nothing: choose another split"
            )


def _check_base(config: Config, name: str, families: Mapping[str, Any]) -> None:
    base, where = config["bases"][name], f"bases.{name}"
    family = base["family"]
    kinds = families[family]["features"]
    if base["features"] not in kinds:
        raise ConfigError(
            f"{where}.features: {base['features']!r} does not fit the family {family}; it takes {' or '.join(kinds)}"
        )
    if base["features"] == "waveform" and base.get("features_dtype"):
        raise ConfigError(
            f"{where}.features_dtype: waveforms are not stored; remove the key or use features: {kinds[0]}"
        )
    if base.get("lang") is not None:
        _known(f"{where}.lang", base["lang"], config.get("langs", {}))
    own = _lang_kind(config, name) == "whisper"
    if own and not families[family]["tokenizer"]:
        raise ConfigError(
            f"{where}.lang: {base['lang']!r} is Whisper's own tokenizer; a {family} model needs kind char or "
            f"sentencepiece"
        )
    if base.get("window") is not None:
        _check_window(base, where, families)
    if base["source"] == "scratch":
        _check_scratch(config, name, own, families)
        return
    for key in ("model", "front_end", "pretrain"):
        if base.get(key) is not None:
            raise ConfigError(f"{where}.{key} is only for source: scratch, but source is {base['source']!r}; remove it")
    _check_source(base, where)
    if families[family]["tokenizer"] and base.get("lang") is not None and not own and _published(base["source"]):
        raise ConfigError(
            f"{where}.lang: {base['lang']!r} is of kind {_lang_kind(config, name)}, but the published Whisper "
            f"{base['source']} has its own tokens; name a token set of kind whisper"
        )


def _check_scratch(config: Config, name: str, own: bool, families: Mapping[str, Any]) -> None:
    base, where = config["bases"][name], f"bases.{name}"
    if not families[base["family"]]["scratch"]:
        able = [family for family, facts in families.items() if facts["scratch"]]
        raise ConfigError(
            f"{where}.source: scratch supports only {' and '.join(able)}; {base['family']} needs a hub name or a folder"
        )
    for key in ("lang", "pretrain"):
        if base.get(key) is None:
            raise ConfigError(f"{where}.{key} is missing; source: scratch needs it")
    if own:
        raise ConfigError(f"{where}.lang: a base from scratch needs a token set of kind char or sentencepiece")
    pretrain, roles = base["pretrain"], _roles(config)
    splits = {key: Split(pretrain["corpus"], pretrain[key]) for key in ("train", "dev")}
    for key, split in splits.items():
        _known_split(config, f"{where}.pretrain", split, key)
        if roles.get(split, "").startswith("the test"):
            raise ConfigError(
                f"{where}.pretrain.{key}: {split.split!r} is {roles[split]}, whose results would be meaningless; "
                f"choose another split"
            )
    _check_apart(f"{where}.pretrain", splits)
    if pretrain.get("factor_sgd") is not None:
        raise ConfigError(
            f"{where}.pretrain.factor_sgd: a base from scratch has no factors; set it for methods that factorise"
        )


def _check_window(base: Mapping[str, Any], where: str, families: Mapping[str, Any]) -> None:
    family, seconds = base["family"], base["window"]
    if not families[family]["window"]:
        raise ConfigError(f"{where}.window: {family} models take utterances of any length; remove the key")
    if base["source"] == "scratch":
        raise ConfigError(f"{where}.window: for source: scratch set model.max_source_positions (20 ms each) instead")
    if not (0 < seconds < 1e6 and abs(seconds * POSITIONS - round(seconds * POSITIONS)) < 1e-6):
        raise ConfigError(f"{where}.window: {seconds!r} is not a multiple of 0.02 s, Whisper's step")
    own = _model_config(base["source"]).get("max_source_positions")
    if own is None and base["source"].startswith("openai/whisper-"):
        own = 30 * POSITIONS
    if own is not None and seconds * POSITIONS > own:
        raise ConfigError(
            f"{where}.window: {seconds:g} s is longer than the window of {base['source']}, {own / POSITIONS:g} s; "
            f"lower it, or remove the key"
        )


def _check_source(base: Mapping[str, Any], where: str) -> None:
    source = base["source"]
    folder = published.local(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{where}.source: the folder {folder} has no config.json; name a model folder")
    elif published.is_name(source):
        if published.is_set():  # else it may be set only where the jobs run; see experiment.outside.lost_bases
            raise ConfigError(f"{where}.source: {published.missing(source)}")
    elif not _HUB_NAME.fullmatch(source):
        raise ConfigError(
            f"{where}.source: {source} is neither an existing folder nor a hub name (owner/name); correct it"
        )


def _model_config(source: str) -> Mapping[str, Any]:
    """The config.json of a local model folder; empty for a hub name, or if the file cannot be read."""
    try:
        return json.loads((published.local(source) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _published(source: str) -> bool:
    """Whether a Whisper has its own tokenizer: it comes from the hub, or from a folder of another program."""
    return not (_model_config(source).get("lowrank_speech") or {}).get("lang_sha256")


def _lang_kind(config: Config, base: str) -> str | None:
    lang = config["bases"][base].get("lang")
    return None if lang is None else config["langs"][lang]["kind"]


# -- tasks -------------------------------------------------------------------------------------------------------------


def _check_task(config: Config, name: str, schema: Schema) -> None:
    task, where = config["tasks"][name], f"tasks.{name}"
    for key, split in task_splits(config, name).items():
        _known_split(config, where, split, key)
    form = isinstance(task["test"], Mapping)
    for test, split in tests(config, name).items():
        _known_split(config, f"{where}.test.{test}" if form else where, split, "split" if form else "test")
    _check_apart(where, task_splits(config, name))
    for test, split in tests(config, name).items():
        at = f"{where}.test.{test}" if form else f"{where}.test"
        for key, other in task_splits(config, name).items():
            if split == other:
                raise ConfigError(f"{at}: {split.split!r} is already the {key} split; choose another split")
        if form and test == DEV:
            raise ConfigError(f"{at}: the name dev is reserved for results on the dev split; rename the test set")
    if task["type"] == "asr":
        if task.get("languages"):
            raise ConfigError(f"{where}.languages: only tasks of type lid take this key; remove it")
        if (task.get("segment") or {}).get("seconds") is not None:
            raise ConfigError(
                f"{where}.segment: it would cut the audio, but not the transcript; only tasks of type lid take this key"
            )
    elif len(task.get("languages") or ("", "")) < 2:
        raise ConfigError(f"{where}.languages: {task['languages']} has only one language; name at least two")
    else:
        _check_spoken(config, name)
    known = {**{decoder: {} for decoder in DEFAULT_DECODERS.values()}, **config.get("decoders", {})}
    for decoder in decoders(config, name):
        _known(f"{where}.decoders", decoder, known)
        kind = known[decoder].get("kind", decoder)
        if task["type"] not in schema["decoders"][kind]["types"]:
            fit = [n for n, d in known.items() if task["type"] in schema["decoders"][d.get("kind", n)]["types"]]
            raise ConfigError(
                f"{where}.decoders: {decoder!r} is of kind {kind}, which does not decode tasks of type {task['type']}; "
                f"{'expected one of: ' + ', '.join(fit) if fit else 'define another one under decoders'}"
            )
        _check_resources(config, decoder)


def _check_resources(config: Config, decoder: str) -> None:
    """Refuse a decoder that names a language model that does not exist."""
    for key in LMS:
        for where, keys in (
            (f"decoders.{decoder}", config.get("decoders", {}).get(decoder)),
            ("decode", config.get("decode")),
        ):
            if (named := (keys or {}).get(key)) is not None:
                _known(f"{where}.{key}", named, config.get("lms") or {})


def _check_spoken(config: Config, name: str) -> None:
    """Refuse corpora for language recognition that have only one language according to the config."""
    task = config["tasks"][name]
    corpus = config["corpora"][task["corpus"]]
    given = corpus.get("languages") or ()
    if corpus["kind"] in ("espeak", "tsv") and len(given) == 1:
        raise ConfigError(
            f"tasks.{name}.corpus: {task['corpus']} has one language, {next(iter(given))}; language recognition needs "
            f"two or more"
        )
    if corpus["kind"] == "digits":
        raise ConfigError(f"tasks.{name}.corpus: {task['corpus']} has one language; language recognition needs two")


def _check_apart(where: str, splits: Mapping[str, Split]) -> None:
    keys = list(splits)
    for i, key in enumerate(keys):
        for other in keys[:i]:
            if splits[key] == splits[other]:
                raise ConfigError(
                    f"{where}.{key}: {splits[key].split!r} is already the {other} split; choose another split"
                )


def _check_calibrate(config: Config) -> None:
    section = config["calibrate"]
    split = Split(section["corpus"], section["split"])
    _known_split(config, "calibrate", split, "split")
    roles = _roles(config)
    if roles.get(split, "").startswith("the test"):
        raise ConfigError(
            f"calibrate.split: {split.split!r} is {roles[split]}; factors must not be fitted to test data: choose a "
            f"training split"
        )


# -- methods and systems -----------------------------------------------------------------------------------------------


def _check_method(config: Config, name: str) -> None:
    method, where = config["methods"][name], f"methods.{name}"
    if method["adapt"] == "lora" and method.get("lora") is None:
        raise ConfigError(f"{where}.lora is missing; adapt: lora needs it, for example {{rank: 8, alpha: 16}}")
    if method["adapt"] != "lora" and method.get("lora") is not None:
        raise ConfigError(f"{where}.lora: it has no effect with adapt: {method['adapt']}; remove it or set adapt: lora")
    if method.get("distil") is not None:
        _check_distil(config, name)
    factorise = method.get("factorise")
    if method.get("progressive") is not None and (factorise is None or method["adapt"] != "full"):
        why = "it has no `factorise`" if factorise is None else f"adapt: {method['adapt']} does not train the factors"
        raise ConfigError(
            f"{where}.progressive: it truncates factors while they train, but {why}; it needs `factorise` and "
            f"adapt: full"
        )
    heads = [method.get("head"), *(task.get("head") for task in config["tasks"].values())]
    held = (factorise is not None and method["adapt"] == "full") or any(map(check_heads.constrained, heads))
    if method.get("constraint") is not None and not held:
        raise ConfigError(
            f"{where}.constraint: it keeps the first factors semi-orthogonal in full fine-tuning, so it needs "
            f"`factorise` and adapt: full, or a head with factors or classifier: orthonormal"
        )
    if factorise is None:
        return
    given = [key for key in WISHES if factorise.get(key) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"{where}.factorise: give exactly one of {', '.join(WISHES)}; given: {', '.join(given) or 'none'}"
        )
    if calibrated(method):
        init = factorise.get("init")
        why = f"init: {init}" if init in CALIBRATED else "allocate"
        if "calibrate" not in config:
            raise ConfigError(
                f"{where}.factorise.{why} needs the section `calibrate`, for example "
                f"calibrate: {{corpus: {next(iter(config['corpora']))}, split: train}}"
            )
        tried = next((key for key in ("allocate", "sequential") if factorise.get(key)), None)
        if tried and config["calibrate"].get("trial") == 0:
            raise ConfigError(f"calibrate.trial is 0, but {where}.factorise.{tried} needs some utterances; raise it")


def _check_distil(config: Config, name: str) -> None:
    """Refuse teachers that do not exist, are not trained, or learn from this method themselves."""
    methods, where = config["methods"], f"methods.{name}.distil"
    distil, adapt = methods[name]["distil"], methods[name]["adapt"]
    if adapt == "none" or (adapt == "head" and distil.get("hidden")):
        what = "model" if adapt == "none" else "encoder, so hidden has no effect"
        raise ConfigError(f"{where}: adapt: {adapt} does not train the {what}; set adapt: full or lora, or remove it")
    chain = [name]
    while (teacher := (methods[chain[-1]].get("distil") or {}).get("teacher", BASE)) != BASE:
        at = f"methods.{chain[-1]}.distil.teacher"
        _known(at, teacher, [BASE, *methods])
        if methods[teacher]["adapt"] == "none":
            raise ConfigError(f"{at}: {teacher!r} has adapt: none, so it is not trained; name base or another method")
        if teacher in chain:
            raise ConfigError(f"{at}: {' learns from '.join([*chain, teacher])}; a teacher cannot learn from itself")
        chain.append(teacher)
    # A method that only evaluates the base is often called base, and means the same.
    if len(chain) == 1 and BASE in methods and (methods[BASE]["adapt"] != "none" or methods[BASE].get("factorise")):
        raise ConfigError(f"{where}.teacher: {BASE!r} is the base of the system, but also a method; rename the method")


def _check_system(config: Config, system: System, families: Mapping[str, Any]) -> None:
    base, task = config["bases"][system.base], config["tasks"][system.task]
    if task["type"] == "asr" and base.get("lang") is None:
        raise ConfigError(
            f"bases.{system.base}.lang: the task {system.task} recognises speech and needs a token set; name one of "
            f"{', '.join(config.get('langs', {})) or 'langs (none is defined)'}"
        )
    recipe, name = training(config, system), "/".join(system)
    _check_factor_sgd(config, system, recipe)
    changed = [key for key in ("speed", "noise", "reverberation") if recipe.get(key) not in (None, [])]
    if changed and base["features"] != "waveform":
        raise ConfigError(
            f"training.{changed[0]}: it changes samples, but the system {name} reads stored features "
            f"({base['features']}); set bases.{system.base}.features: waveform, or remove the key"
        )
    able = [family for family, facts in families.items() if facts["front_end"]]
    if recipe.get("train_front_end") and (base["features"] != "waveform" or base["family"] not in able):
        raise ConfigError(
            f"training.train_front_end: the system {name} reads stored features, or has no front end; set "
            f"bases.{system.base}.features: waveform (families with a front end: {', '.join(able)})"
        )
    _check_teacher(config, system, recipe, families)
    progressive = config["methods"][system.method].get("progressive")
    if progressive is not None and recipe.get("optimiser", "adamw") != "adamw":
        raise ConfigError(
            f"training.optimiser: methods.{system.method}.progressive cannot truncate the state of "
            f"{recipe['optimiser']}; set training.optimiser: adamw for the system {name}"
        )
    own = _lang_kind(config, system.base) == "whisper"
    if task["type"] == "asr" and recipe.get("ctc_weight") and own:
        raise ConfigError(
            f"training.ctc_weight: the system {name} uses Whisper's own tokenizer, but CTC needs a token set of kind "
            f"char or sentencepiece; set ctc_weight: 0"
        )


def _check_loss(where: str, who: str, recipe: Mapping[str, Any], task: str, schema: Schema) -> None:
    """Refuse a loss that is unknown or for another ``task`` of models, and keys of CTC for a model without CTC."""
    default, name = schema["losses"][task], recipe.get("loss")
    if name is not None:
        _known(f"{where}.loss", name, schema["modules"]["losses"])
        if schema["loss_tasks"].get(name, task) != task:
            raise ConfigError(
                f"{where}.loss: {who} cannot be trained with {name}, which is for {schema['loss_tasks'][name]} models; "
                f"remove it there (its own loss is {default}), or set it only for bases and tasks that it fits"
            )
    ctc, loss = recipe.get("ctc") or {}, name or default
    given = [key for key in ("prior_scale", "delay_penalty") if ctc.get(key)]
    if given and task != "classify" and loss != "ctc" and not (task == "seq2seq" and recipe.get("ctc_weight")):
        raise ConfigError(
            f"{where}.ctc.{given[0]}: {who} trains without CTC (its loss is {loss}); set {given[0]}: 0 for it, in the "
            f"training of its base, task or method"
        )


def _check_teacher(config: Config, system: System, recipe: Mapping[str, Any], families: Mapping[str, Any]) -> None:
    """Refuse a teacher outside of the grid, and a base as a teacher without the outputs that the student needs."""
    distil = config["methods"][system.method].get("distil")
    if distil is None:
        return
    where, base = f"methods.{system.method}.distil", config["bases"][system.base]
    _check_untranscribed(config, system, f"{where}.untranscribed")
    if distil.get("hidden") and recipe.get("compile"):
        raise ConfigError(f"{where}.hidden: states within compiled layers cannot be read; set training.compile: false")
    if (chosen := teacher(config, system)) is not None:
        if chosen.method not in config["systems"]["methods"]:
            raise ConfigError(
                f"{where}.teacher: {chosen.method!r} is not in systems.methods, so its systems are not trained; add it"
            )
        return
    # A published base has no CTC head for the token set, and only a trained system has outputs for languages.
    published = base["source"] != "scratch" and _published(base["source"])
    headless = config["tasks"][system.task]["type"] == "lid" and (base["source"] == "scratch" or published)
    headless |= published and families[base["family"]]["recognises_by"] == "ctc"
    if headless and distil.get("logits", 1):
        raise ConfigError(
            f"{where}.teacher: the base {system.base} has no outputs for the task {system.task} to learn from; name a "
            f"method as the teacher, or set logits: 0 and a weight for hidden"
        )


def _check_untranscribed(config: Config, system: System, where: str) -> None:
    """Refuse splits that do not exist, that occur twice, or that the task trains, evaluates or tests on."""
    splits = untranscribed(config, system)
    roles = {split: f"the {name} split" for name, split in task_splits(config, system.task).items()}
    roles |= dict.fromkeys(tests(config, system.task).values(), "a test split")
    for number, split in enumerate(splits):
        _known_split(config, where, split, "split")
        if split in splits[:number]:
            raise ConfigError(f"{where}: {split.split!r} of corpora.{split.corpus} occurs twice; remove one")
        if split in roles:
            raise ConfigError(
                f"{where}.split: {split.split!r} of corpora.{split.corpus} is {roles[split]} of tasks.{system.task}; "
                f"choose a split that the task does not use"
            )


def _check_factor_sgd(config: Config, system: System, recipe: Mapping[str, Any]) -> None:
    """``factor_sgd`` needs factors that train. A base from a folder may already have some; the stage checks that."""
    if recipe.get("factor_sgd") is None:
        return
    method, source = config["methods"][system.method], config["bases"][system.base]["source"]
    if check_heads.has_factors(head(config, system)):
        return
    if method["adapt"] != "full":
        why = f"with adapt: {method['adapt']} no factors train"
    elif method.get("factorise") is None and (source == "scratch" or _on_the_hub(source)):
        why = f"methods.{system.method} does not factorise"
        if source != "scratch":
            why += f", and {source} is a hub name; if it is a folder, write ./{source}"
    else:
        return
    raise ConfigError(
        f"training.factor_sgd: the system {'/'.join(system)} has no factors for it ({why}); set it in the training of "
        f"methods with factorise and adapt: full, or methods.{system.method}.training.factor_sgd: null"
    )


def _on_the_hub(source: str) -> bool:
    return bool(_HUB_NAME.fullmatch(source)) and not Path(source).is_dir()
