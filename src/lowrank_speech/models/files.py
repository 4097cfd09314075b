"""The files of a model folder: which of them belong to a model, and which an adaptation reads.

This module imports neither torch nor transformers.
"""

import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

KEY = "lowrank_speech"
"""The key of config.json for what this package adds to transformers' own config."""
WEIGHTS = "model.safetensors"
METHOD = "lowrank_speech"
"""The ``quant_method`` of a factorised folder, by which transformers finds ``lowrank_speech.hf``."""
GUARDED = {
    "quantization_config": {"quant_method": METHOD},
    # Transformers only warns about an unknown method, and would draw the factorised layers at random. It refuses a name
    # of the weights that does not end with .safetensors, and shows it; ``lowrank_speech.hf`` removes the key first.
    "transformers_weights": "this model has low-rank factors: `import lowrank_speech.hf` before loading it",
}
"""Keys of config.json that make transformers load a factorised folder with ``lowrank_speech.hf``, or refuse it."""
PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "normalizer.json",
    "*.model",
)
LEGAL = ("LICENSE*", "NOTICE*", "license*")
# All other files are not copied: weights in other formats, optimiser states, model cards of the base.
COPIED = ("generation_config.json", *LEGAL)


def is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file's name matches one of ``patterns``."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def copy_files(source: Path, target: Path, tokenizer: bool) -> None:
    """Copy the files of ``source`` that belong to a model, except its config and weights.

    ``tokenizer``: whether to copy the tokenizer, because the model's outputs stand for its tokens.
    """
    patterns = (*COPIED, *PREPROCESSOR, *(TOKENIZER if tokenizer else ()))
    for path in sorted(source.iterdir()):
        if not path.is_file() or not is_one_of(path.name, patterns):
            continue
        if path.name in PREPROCESSOR and (text := _without_lm(path.read_text(encoding="utf-8"))) is not None:
            (target / path.name).write_text(text, encoding="utf-8")
        else:
            shutil.copyfile(path, target / path.name)


def _without_lm(text: str) -> str | None:
    """The text of a preprocessor file, changed to a processor without an n-gram; None if no change is needed."""
    try:
        said = json.loads(text)
        name = said["processor_class"]
    except (ValueError, KeyError, TypeError):
        return None
    if not str(name).endswith("WithLM"):  # its folder language_model is not copied
        return None
    return json.dumps(said | {"processor_class": name.removesuffix("WithLM")}, indent=2) + "\n"


def files_read(folder: str | Path) -> list[Path]:
    """The files of a model folder that affect adaptation or decoding, sorted."""
    wanted = ("config.json", WEIGHTS, "generation_config.json", *PREPROCESSOR, *TOKENIZER)
    return sorted(path for path in Path(folder).iterdir() if path.is_file() and is_one_of(path.name, wanted))


def imported_files(folder: str | Path) -> list[Path]:
    """The files of a folder in the hub's layout that an import may read, sorted; weights may be in several files."""
    wanted = ("config.json", "*.safetensors", "*.index.json", "pytorch_model*.bin", *COPIED, *PREPROCESSOR, *TOKENIZER)
    found = (path for path in Path(folder).iterdir() if path.is_file() and is_one_of(path.name, wanted))
    return sorted(path for path in found if not path.name.startswith("adapter."))
