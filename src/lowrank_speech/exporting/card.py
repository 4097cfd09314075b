"""The model card (README.md) of an export: what the folder is, numbers, data, method, licence, and how to use it."""

from collections.abc import Mapping
from typing import Any

from lowrank_speech.exporting.about import About, Score

WHAT = {
    "hf": "a Hugging Face folder",
    "lowrank": "a Hugging Face folder",
    "dense": "a plain Hugging Face folder",
    "onnx": "ONNX graphs for onnxruntime",
    "onnx-int8": "ONNX graphs for onnxruntime with 8-bit weights",
    "ctranslate2": "a CTranslate2 model for faster-whisper",
}
MULTIPLIED = ("dense", "ctranslate2")
"""Formats without factors."""
TASKS = {
    "ctc": "speech recognition (CTC)",
    "seq2seq": "speech recognition (encoder and decoder)",
    "classify": "language recognition",
    "body": "no task yet: the states of an encoder",
}
PIPELINES = {"ctc": "automatic-speech-recognition", "seq2seq": "automatic-speech-recognition"}
PIPELINES |= {"classify": "audio-classification"}
NAMES = {"wer": "word error rate", "cer": "character error rate", "accuracy": "accuracy", "act_cprimary": "C_primary"}
LIBRARIES = {"onnx": "onnxruntime", "onnx-int8": "onnxruntime", "ctranslate2": "ctranslate2"}


def card(form: str, facts: Mapping[str, Any], known: About, usage: str | None) -> str:
    """The text of README.md.

    ``facts``: ``family``, ``task``, ``parameters``, ``dense`` (parameters without factors), ``layers`` (of factors),
    ``ranks`` (smallest, largest), ``bytes`` of the folder, and ``compared``, what the comparison found.
    """
    factors = ""
    if facts["layers"]:
        factors = " Its low-rank factors are multiplied out." if form in MULTIPLIED else " It has low-rank factors."
    lines = [
        *_header(form, facts, known),
        f"# {known.name}",
        "",
        f"A {facts['family']} model for {TASKS[facts['task']]}, exported by lowrank-speech as "
        f"{WHAT.get(form, form)}.{factors}",
        "",
    ]
    if usage:
        run = "Run this in the folder; `audio.wav` is any recording with 16 kHz and one channel."
        lines += ["## Use", "", run, "", "```python", usage.rstrip("\n"), "```", ""]
    lines += ["## Numbers", "", "| what | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in _numbers(facts)), ""]
    if known.scores:
        lines += ["## Error rates", "", *_scores(known.scores), ""]
    lines += ["## Method", "", *(f"- {said}" for said in _method(facts, known)), ""]
    data = known.data or ["not known: the folder is not a system of an experiment"]
    lines += ["## Data", "", *(f"- {said}" for said in data), ""]
    licence = (
        f"That of the base: {known.licence}."
        if known.licence
        else "That of the base, which is not known here: see the base."
    )
    lines += ["## Licence", "", licence, ""]
    return "\n".join(lines)


def _header(form: str, facts: Mapping[str, Any], known: About) -> list[str]:
    found = [f"library_name: {LIBRARIES.get(form, 'transformers')}"]
    if facts["task"] in PIPELINES:
        found.append(f"pipeline_tag: {PIPELINES[facts['task']]}")
    if known.licence and not known.licence.startswith("see "):
        found.append(f"license: {known.licence}")
    return ["---", *found, "tags:", "- lowrank-speech", f"- {facts['family']}", "---", ""]


def _numbers(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    parameters, dense = facts["parameters"], facts["dense"]
    found = [("parameters", f"{parameters:,}")]
    if dense != parameters:
        found += [("parameters without factors", f"{dense:,}"), ("reduction", f"{1 - parameters / dense:.1%}")]
    found.append(("size of the folder", f"{facts['bytes'] / 1e6:.1f} MB"))
    compared = facts["compared"]
    if "largest_difference" in compared:
        found.append(("largest difference from the model, log probabilities", f"{compared['largest_difference']:.2g}"))
    if "same_best" in compared:
        found.append(("same best symbol", f"{compared['same_best']:.1%} of {compared['outputs']} outputs"))
    if "divergence" in compared:
        found.append(("divergence from the model", f"{compared['divergence']:.2g} nats"))
    return found


def _scores(scores: list[Score]) -> list[str]:
    lines = ["| test set | decoder | measure | value |", "|---|---|---|---|"]
    for score in scores:
        cost = score.name == "act_cprimary"
        shown = (lambda x: f"{x:.3f}") if cost else (lambda x: f"{x:.2%}")
        value = shown(score.value)
        if score.interval:
            value += f" ({shown(score.interval[0])} to {shown(score.interval[1])})"
        lines.append(f"| {score.test} | {score.decoder} | {NAMES[score.name]} | {value} |")
    return lines


def _method(facts: Mapping[str, Any], known: About) -> list[str]:
    found = [f"base: {known.base}"] if known.base else []
    if facts["layers"]:
        low, high = facts["ranks"]
        ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
        found.append(f"{facts['layers']} linear layers replaced by two factors each, of {ranks}")
    found += known.method
    return found or ["not known: the folder is not a system of an experiment"]
