"""What is known about a model: its base, licence, training and error rates, from the manifests of its experiment.

An experiment has D/train/base/task/method/ (model/, train.json), D/base/NAME/base.json and
D/score/base/task/method/decoder/test/score.json. Of a folder without an experiment only the model itself is known.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowrank_speech.models.files import LEGAL, is_one_of

ADAPT = {
    "full": "all weights trained, except a convolutional front end",
    "lora": "LoRA adapters trained, and merged into the weights",
    "head": "only the head trained",
    "none": "not trained after the base, except a new head",
}
RATES = ("wer", "cer", "accuracy", "act_cprimary")


@dataclass(frozen=True)
class Score:
    """An error rate or cost on a test set, a fraction, with its interval if there is one."""

    decoder: str
    test: str
    name: str
    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class About:
    """What the card of an export says. ``licence``: of the base; None: not known."""

    name: str
    base: str | None = None
    licence: str | None = None
    method: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)


def about(folder: Path, name: str) -> About:
    """What is known about the model in ``folder``. ``name``: what people call it."""
    place = _place(folder)
    if place is None:
        return About(name, licence=_licence([folder]))
    root, system = place
    base = _json(root / "base" / system.split("/")[0] / "base.json")
    trained = _json(folder.parent / "train.json")
    source = (base.get("cfg") or {}).get("source")
    revision = (base.get("cfg") or {}).get("revision")
    shown = None if source is None else source + (f" (revision {revision})" if revision else "")
    folders = [folder] + ([Path(source)] if source and Path(source).is_dir() else [])
    return About(
        f"{root.name}:{system}",
        "a model trained from scratch" if source == "scratch" else shown,
        _licence(folders),
        _method(trained),
        _data(trained),
        list(_scores(root / "score" / system)),
    )


def _place(folder: Path) -> tuple[Path, str] | None:
    """The experiment's folder and base/task/method, if ``folder`` is D/train/base/task/method/model."""
    parts = folder.absolute().parts
    if len(parts) > 5 and parts[-1] == "model" and parts[-5] == "train":
        return folder.absolute().parents[4], "/".join(parts[-4:-1])
    return None


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _method(manifest: dict[str, Any]) -> list[str]:
    cfg, found = manifest.get("cfg") or {}, []
    if cfg.get("adapt") in ADAPT:
        found.append(ADAPT[cfg["adapt"]])
    for key, said in (
        ("distil", "distilled from a teacher"),
        ("progressive", "ranks cut while training"),
        ("constraint", "factors kept semi-orthogonal"),
    ):
        if cfg.get(key):
            found.append(said)
    training = cfg.get("training") or {}
    shown = [f"{key} {training[key]:g}" for key in ("epochs", "lr") if isinstance(training.get(key), int | float)]
    return found + ([", ".join(shown)] if shown else [])


def _data(manifest: dict[str, Any]) -> list[str]:
    metrics, found = manifest.get("metrics") or {}, []
    if metrics.get("utterances_train") is not None:
        hours = (metrics.get("seconds_speech") or 0) / 3600
        found.append(f"{metrics['utterances_train']:,} utterances for training ({hours:.2f} h of speech)")
    if metrics.get("utterances_dev") is not None:
        found.append(f"{metrics['utterances_dev']:,} utterances to choose the epoch")
    if metrics.get("labels"):
        found.append(f"languages: {', '.join(metrics['labels'])}")
    return found


def _scores(folder: Path) -> Iterator[Score]:
    for path in sorted(folder.glob("*/*/score.json")):
        metrics = _json(path).get("metrics") or {}
        intervals = metrics.get("interval") or {}
        for name in RATES:
            value = metrics.get(name)
            if isinstance(value, int | float):
                interval = intervals.get(name)
                yield Score(*path.parts[-3:-1], name, value, tuple(interval) if interval else None)


def _licence(folders: list[Path]) -> str | None:
    """From a licence file, or the front matter of a model card."""
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.is_file() and is_one_of(path.name, LEGAL):
                return f"see {path.name}"
        card = folder / "README.md"
        if card.is_file() and (said := front_matter(card.read_text(encoding="utf-8")).get("license")):
            return said
    return None


def front_matter(text: str) -> dict[str, str]:
    """The plain keys of a card's YAML header."""
    if not text.startswith("---\n"):
        return {}
    lines = text[4:].partition("\n---")[0].splitlines()
    pairs = (line.partition(":") for line in lines if ":" in line and not line.startswith((" ", "-")))
    return {key.strip(): value.strip().strip("'\"") for key, _, value in pairs if value.strip()}
