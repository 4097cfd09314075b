"""Check methods, and the systems that they make of bases and tasks, before the first job. See ``workflow.checks``."""

from collections.abc import Mapping
from typing import Any

from lowrank_speech.workflow import check_heads
from lowrank_speech.workflow.check_bases import has_own_tokens, lang_kind, on_the_hub
from lowrank_speech.workflow.check_names import known, known_split
from lowrank_speech.workflow.config import (
    BASE,
    CALIBRATED,
    MEAN_LOGMEL,
    WISHES,
    Config,
    ConfigError,
    System,
    calibrated,
    head,
    task_splits,
    teacher,
    tests,
    training,
    untranscribed,
)
from lowrank_speech.workflow.schema import Schema


def check_method(config: Config, name: str) -> None:
    method, where = config["methods"][name], f"methods.{name}"
    if method["adapt"] == "lora" and method.get("lora") is None:
        raise ConfigError(f"{where}.lora is missing; adapt: lora needs it, for example {{rank: 8, alpha: 16}}")
    if method["adapt"] != "lora" and method.get("lora") is not None:
        raise ConfigError(f"{where}.lora: it has no effect with adapt: {method['adapt']}; remove it or set adapt: lora")
    _check_control(config, name)
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


def _check_control(config: Config, name: str) -> None:
    """Refuse controls of tasks without languages, and keys that they do not use."""
    method, where = config["methods"][name], f"methods.{name}"
    control = method.get("control")
    if method.get("shuffle") is not None and control != "shuffled-labels":
        raise ConfigError(f"{where}.shuffle: it has no effect without control: shuffled-labels; remove it")
    if control is None:
        return
    grid = config["systems"]
    if name in grid["methods"]:
        for task in grid["tasks"]:
            if config["tasks"][task]["type"] != "lid":
                raise ConfigError(
                    f"{where}.control: only tasks of type lid have controls, but systems.tasks has {task!r}; leave one "
                    f"of the two out of the grid"
                )
    if control == MEAN_LOGMEL:
        used = next((k for k in ("head", "factorise", "lora", "distil", "training") if method.get(k) is not None), None)
        if method["adapt"] != "none" or used:
            what = f"adapt: {method['adapt']}" if method["adapt"] != "none" else used
            raise ConfigError(
                f"{where}.control: {MEAN_LOGMEL} takes the place of the base and has nothing else to set, but the "
                f"method has {what}; write {{adapt: none, control: {MEAN_LOGMEL}}}"
            )
    elif (method.get("head") or {}).get("kind") == check_heads.TOKENS and method["adapt"] == "none":
        raise ConfigError(f"{where}.control: nothing trains, so labels have no effect; choose another head, or adapt")


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
        known(at, teacher, [BASE, *methods])
        if methods[teacher]["adapt"] == "none":
            raise ConfigError(f"{at}: {teacher!r} has adapt: none, so it is not trained; name base or another method")
        if teacher in chain:
            raise ConfigError(f"{at}: {' learns from '.join([*chain, teacher])}; a teacher cannot learn from itself")
        chain.append(teacher)
    # A method that only evaluates the base is often called base, and means the same.
    if len(chain) == 1 and BASE in methods and (methods[BASE]["adapt"] != "none" or methods[BASE].get("factorise")):
        raise ConfigError(f"{where}.teacher: {BASE!r} is the base of the system, but also a method; rename the method")


def check_system(config: Config, system: System, families: Mapping[str, Any]) -> None:
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
    own = lang_kind(config, system.base) == "whisper"
    if task["type"] == "asr" and recipe.get("ctc_weight") and own:
        raise ConfigError(
            f"training.ctc_weight: the system {name} uses Whisper's own tokenizer, but CTC needs a token set of kind "
            f"char or sentencepiece; set ctc_weight: 0"
        )


def check_loss(where: str, who: str, recipe: Mapping[str, Any], task: str, schema: Schema) -> None:
    """Refuse a loss that is unknown or for another ``task`` of models, and keys of CTC for a model without CTC."""
    default, name = schema["losses"][task], recipe.get("loss")
    if name is not None:
        known(f"{where}.loss", name, schema["modules"]["losses"])
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
    published = base["source"] != "scratch" and has_own_tokens(base["source"])
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
        known_split(config, where, split, "split")
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
    elif method.get("factorise") is None and (source == "scratch" or on_the_hub(source)):
        why = f"methods.{system.method} does not factorise"
        if source != "scratch":
            why += f", and {source} is a hub name; if it is a folder, write ./{source}"
    else:
        return
    raise ConfigError(
        f"training.factor_sgd: the system {'/'.join(system)} has no factors for it ({why}); set it in the training of "
        f"methods with factorise and adapt: full, or methods.{system.method}.training.factor_sgd: null"
    )
