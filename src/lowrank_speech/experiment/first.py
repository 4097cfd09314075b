"""Write a first config for a corpus, a base and a task, with a comment on each choice (``first.yaml.j2``).

Learning rates of full fine-tuning and of LoRA are those of workflow/experiments, by family; they are not tuned.
"""

import json
import re
from functools import partial

from lowrank_speech import published
from lowrank_speech.experiment.detect import Corpus

RATES = {"whisper": ("1.0e-5", "1.0e-3"), "wav2vec2": ("3.0e-5", "1.0e-4"), "w2v-bert": ("3.0e-5", "1.0e-4")}
"""Family -> learning rates of full fine-tuning and of LoRA."""
BATCH = {"whisper": 30, "wav2vec2": 60, "w2v-bert": 60}
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_RESERVED = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")


def text(corpus: Corpus, base: str, family: str, task: str, output: str) -> str:
    """The config as YAML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lowrank_speech", "experiment"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # YAML
        keep_trailing_newline=True,
    )
    environment.filters |= {"quoted": quoted, "json": partial(json.dumps, ensure_ascii=False)}
    what = {"asr": "Speech recognition", "lid": "Language recognition"}[task]
    shares, (lr, lora_lr) = _shares(corpus), RATES[family]
    section = {key: value for key, value in (corpus.section or {}).items() if key not in ("kind", "splits")}
    english = all(language.partition("-")[0] == "en" for language in corpus.languages)
    return environment.get_template("first.yaml.j2").render(
        title=f"{what} on {corpus.path.resolve().name} with {base}",
        output=output,
        corpus=corpus,
        section=section,
        name=name_of(corpus),
        path=str(corpus.path.resolve()),
        shares=shares,
        divided=any(share for _, share in shares.values()),
        by=corpus.by,
        task=task,
        family=family,
        base=base,
        base_name=valid_name(base.rstrip("/").rpartition("/")[2], "base"),
        hub=not published.local(base).is_dir(),
        # Whisper's embedding is a large part of small models; language recognition does without the decoder.
        layers="[ffn, embedding]" if family == "whisper" and task == "asr" else "ffn",
        lr=lr,
        lora_lr=lora_lr,
        batch_seconds=BATCH[family],
        normaliser="whisper-english" if english else "whisper-basic",
    )


def name_of(corpus: Corpus) -> str:
    """A name for the corpus, from its folder."""
    return valid_name(corpus.path.resolve().name, "corpus")


def valid_name(text: str, otherwise: str) -> str:
    """A name for a section, from ``text``; begins with ``otherwise`` if ``text`` begins with no letter."""
    found = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-")
    return found if re.match(r"[A-Za-z]", found) else "_".join(filter(None, (otherwise, found)))


def quoted(value: str) -> str:
    """A text in YAML, in quotes where it needs them."""
    plain = _PLAIN.fullmatch(value) and value.lower() not in _RESERVED
    return value if plain else json.dumps(value, ensure_ascii=False)


def _shares(corpus: Corpus) -> dict[str, tuple[str, str | None]]:
    """Split -> its source, and which part of it (None: all). What has no source of its own is a part of that of train.

    A lone `dev` is the test set, and the epoch is chosen on a part of the training source.
    """
    sources = dict(corpus.sources)
    if "test" not in sources and "dev" in sources:
        sources["test"] = sources.pop("dev")
    train = sources["train"]
    if "dev" in sources:
        return {split: (sources[split], None) for split in ("train", "dev", "test")}
    if "test" in sources:
        return {"train": (train, "[0.0, 0.9]"), "dev": (train, "[0.9, 1.0]"), "test": (sources["test"], None)}
    return {"train": (train, "[0.0, 0.8]"), "dev": (train, "[0.8, 0.9]"), "test": (train, "[0.9, 1.0]")}
