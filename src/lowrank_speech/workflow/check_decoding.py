"""Check language models and decoders before the first job. See ``workflow.checks``."""

from lowrank_speech.workflow.check_names import known, known_split, roles_of
from lowrank_speech.workflow.config import (
    LMS,
    Config,
    ConfigError,
    System,
    decoders,
    fitting,
    lm_dev,
    lm_splits,
    model_task,
)
from lowrank_speech.workflow.schema import Schema


def check_lm(config: Config, name: str) -> None:
    """Refuse unknown names, text of dev or test splits, and settings of text for a model that is taken as it is."""
    section, where = config["lms"][name], f"lms.{name}"
    known(f"{where}.lang", section["lang"], config.get("langs", {}))
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
        known(f"{where}.corpora", corpus, config["corpora"])
    roles, splits, dev = roles_of(config), lm_splits(config, name), lm_dev(config, name)
    for split in splits:
        known_split(config, where, split, "splits")
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
        known_split(config, f"{where}.dev", split, "split")
        if roles.get(split, "").startswith("the test"):
            raise ConfigError(f"{where}.dev.split: {split.split!r} is {roles[split]}; choose a dev split")
        if split in splits:
            raise ConfigError(
                f"{where}.dev.split: the model is made from {split.split!r} of corpora.{split.corpus}; its perplexity "
                f"there would mean nothing: choose another split"
            )


def check_decoders(config: Config, system: System, schema: Schema) -> None:
    """Refuse a system that none of its task's decoders decodes."""
    if not fitting(config, schema, system.base, system.task):
        of, where = model_task(config, schema, system.base, system.task), f"tasks.{system.task}.decoders"
        able = sorted({kind for kind in schema["decoders"] if f"decoder.{kind}.{of}" in schema["$defs"]})
        raise ConfigError(
            f"{where}: none of {', '.join(decoders(config, system.task))} decodes the {of} model of the base "
            f"{system.base}; add one of a kind that does: {', '.join(able)}"
        )


def check_resources(config: Config, decoder: str) -> None:
    """Refuse a decoder that names a language model that does not exist."""
    for key in LMS:
        for where, keys in (
            (f"decoders.{decoder}", config.get("decoders", {}).get(decoder)),
            ("decode", config.get("decode")),
        ):
            if (named := (keys or {}).get(key)) is not None:
                known(f"{where}.{key}", named, config.get("lms") or {})
