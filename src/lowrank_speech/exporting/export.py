"""Export a model in a format: check, write, compare, and describe. The stage and the command use it.

    metrics = export(model, folder, "onnx", out, about(folder, "my system"))

The folder ``out`` appears only if the export agrees with the model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import atomic
from lowrank_speech.exporting import registry
from lowrank_speech.exporting.about import About
from lowrank_speech.exporting.card import card


def export(
    model: Any, source: Path, form: str, out: Path, known: About, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write ``model``, the model in ``source``, to the folder ``out``; returns metrics, with those of the comparison.

    ``options``: keyword arguments of the format. ``out`` is replaced if it exists. Raises UserError if the format does
    not fit the model, or the export differs from it.
    """
    module = registry.module(form)
    if hasattr(module, "check"):
        module.check(model, source)
    plan = model.plan or {}
    facts = {
        "family": model.family,
        "task": model.task,
        "dense": model.dense_parameters(),
        "layers": len(plan),
        "ranks": (min(plan.values()), max(plan.values())) if plan else None,
    }
    with atomic(out) as temporary:
        compared = module.write(model, source, temporary, **(options or {}))
        metrics = {"format": form, **compared, "parameters": model.parameters_total()}
        facts |= {"parameters": metrics["parameters"], "compared": compared, "bytes": _bytes(temporary)}
        usage = module.usage(model, temporary) if hasattr(module, "usage") else None
        (temporary / "README.md").write_text(card(form, facts, known, usage), encoding="utf-8")
    return metrics | {"parameters_dense": facts["dense"], "bytes": facts["bytes"]}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
