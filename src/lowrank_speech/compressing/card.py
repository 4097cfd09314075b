"""The model card of a compressed model: what it is, how it was made, what it costs, how to use it."""

from pathlib import Path
from typing import Any

TAGS = {
    "seq2seq": "automatic-speech-recognition",
    "ctc": "automatic-speech-recognition",
    "classify": "audio-classification",
}
"""Task of a model -> pipeline tag on the hub."""


def card(report: dict[str, Any], out: Path) -> str:
    """The text of README.md for a report of ``compressing.compress``; ``out``: the folder of the model."""
    before, after, layers = report["parameters_before"], report["parameters_after"], report["layers"]
    recipe, calibration = report["recipe"], report["calibration"]
    ranks = [row["rank"] for row in layers]
    revision = f" (revision {report['revision']})" if report["revision"] else ""
    version = report["versions"].get("lowrank-speech", "")
    groups = recipe["layers"] if isinstance(recipe["layers"], str) else ", ".join(recipe["layers"])
    lines = [
        "---",
        *([f"pipeline_tag: {TAGS[report['task']]}"] if report["task"] in TAGS else []),
        f"base_model: {report['source']}",
        "tags: [low-rank, compression]",
        "---",
        "",
        f"# {out.name}",
        "",
        f"{report['source']}{revision} with {100 * report['reduction']:.1f} % fewer parameters: {before:,} -> "
        f"{after:,}. Made by lowrank-speech {version} without training.",
        "",
        "## Method",
        "",
        f"{len(layers)} layers ({groups}) are products of two low-rank factors, at ranks {min(ranks)} to {max(ranks)}; "
        f"init: {recipe['init']}; ranks {'allocated by what they cost' if recipe['allocate'] else 'uniform'}. "
        f"Calibrated on {calibration['utterances']} utterances ({calibration['seconds'] / 60:.1f} minutes), without "
        f"transcripts. compress.json lists each layer.",
        "",
        "## Numbers",
        "",
        *_numbers(report),
        "",
        *(f"- {sentence}" for sentence in report["verdict"]),
        "",
        "## Use",
        "",
        "```python",
        "from lowrank_speech import load",
        "",
        f'model = load("{out.name}")',
        'print(model.identify("speech.wav"))'
        if report["task"] == "classify"
        else 'print(model.transcribe("speech.wav"))',
        "```",
        "",
        "## Licence",
        "",
        f"The weights derive from those of {report['source']}; its licence applies.",
    ]
    return "\n".join(lines) + "\n"


def _numbers(report: dict[str, Any]) -> list[str]:
    rows = ["| | before | after |", "|---|---|---|"]
    rows.append(f"| parameters | {report['parameters_before']:,} | {report['parameters_after']:,} |")
    evaluation, divergence = report["evaluation"], report["divergence"]
    if evaluation is not None:
        for name in ("wer", "cer"):
            cells = (_rate(evaluation[side], name) for side in ("before", "after"))
            rows.append(f"| {name.upper()} % | {' | '.join(cells)} |")
        rows += [
            "",
            f"{evaluation['utterances']} utterances ({evaluation['seconds'] / 60:.1f} minutes), greedy decoding, "
            f"normaliser {evaluation['normaliser']}; in brackets 95 % intervals.",
        ]
    if divergence is not None and divergence["agreement"] is not None:
        rows += [
            "",
            f"On {report['calibration']['held_out']} held-out utterances of the calibration speech: same symbol as "
            f"the dense model in {100 * divergence['agreement']:.1f} %, loss {divergence['loss']:.4f} nats per output "
            f"above it.",
        ]
    elif divergence is not None:
        rows += [
            "",
            f"The encoder states differ from the dense model's by {100 * divergence['loss']:.1f} % of their power.",
        ]
    return rows


def _rate(side: dict[str, Any], name: str) -> str:
    ends = (side.get("interval") or {}).get(name)
    shown = "-" if side[name] is None else f"{100 * side[name]:.2f}"
    return shown if ends is None else f"{shown} [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]"
