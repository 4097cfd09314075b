"""Export format dense: a plain Hugging Face folder with the factors multiplied out (in float64).

The class under ``architectures`` in its config.json loads it with ``from_pretrained``, without this package, and the
processor in the folder has the vocabulary of the head. A head that transformers does not have is stored as ``head.*``.
"""

from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.exporting import snippets

TOLERANCE = 1e-2
"""Of log probabilities. Multiplying factors out rounds each weight once; deep models add that up to about 1e-3."""


def write(model: Any, source: Path, out: Path) -> dict[str, Any]:
    """Write ``model`` with dense layers to the folder ``out``; returns how what transformers loads compares with it."""
    from lowrank_speech.exporting.probes import compared, outputs_of, reference
    from lowrank_speech.models.folder import save_model

    wanted = reference(model, source)
    save_model(model.densified(), out, copy_from=source)
    found = compared(wanted, outputs_of(_loaded(model, out), wanted), TOLERANCE, f"the dense model of {source}")
    return found | _vocabulary(model, out)


def usage(model: Any, folder: Path) -> str | None:
    """Code that uses the folder with transformers alone."""
    return snippets.transformers(model, folder)


def _loaded(model: Any, out: Path) -> Any:
    """The folder as transformers' own class loads it, or as this package does where no class has the head."""
    import transformers

    from lowrank_speech.models.build import wrap
    from lowrank_speech.models.folder import load_model
    from lowrank_speech.models.speech import Meta

    if not model.known_head or (model.head is not None and model.head.DECODER):
        return load_model(out)
    cls = getattr(transformers, model.architecture)
    hf, info = cls.from_pretrained(out, dtype="float32", output_loading_info=True)
    odd = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if odd:
        raise UserError(f"transformers does not find the weights of the dense export, such as {odd[0]}; report this")
    return wrap(hf.eval(), Meta(model.family, model.task))


def _vocabulary(model: Any, out: Path) -> dict[str, Any]:
    """The size of the tokenizer in the folder, for a model that writes; None: it has none."""
    if not (model.task == "ctc" or model.task == "seq2seq"):
        return {}
    from lowrank_speech.exporting.tokenizers import tokenizer_in

    tokenizer = tokenizer_in(out)
    size = None if tokenizer is None else len(tokenizer)
    if size is not None and model.task == "ctc" and size != model.config.vocab_size:
        raise UserError(
            f"the model's tokenizer has {size} tokens, but its head has {model.config.vocab_size} outputs; copy the "
            f"tokenizer with which the head was trained into the model's folder"
        )
    return {"tokenizer": size}
