"""The report of ``compressing.compress`` for a terminal."""

from pathlib import Path
from typing import Any

from lowrank_speech.scoring import text


def lines(report: dict[str, Any], out: Path) -> list[str]:
    """Layers and ranks, error rates before and after, what they mean, what was written."""
    shown = text.factorise_lines({**report, "warnings": []})
    evaluation = report["evaluation"]
    if evaluation is not None:
        shown += ["", *_evaluation(evaluation)]
    return [*shown, "", *report["verdict"], "", f"written: {out} (model, compress.json, README.md)"]


def _evaluation(found: dict[str, Any]) -> list[str]:
    rows = []
    for name in ("wer", "cer"):
        one = found["difference"][name]
        ends = None if one["interval"] is None else " - ".join(f"{100 * end:+.2f}" for end in one["interval"])
        values = (f"{100 * one['second']:.2f}", f"{100 * one['first']:.2f}", f"{100 * one['difference']:+.2f}")
        rows.append([f"%{name.upper()}", *values, ends, None if one["p"] is None else f"{one['p']:.3f}"])
    one = found["difference"]["wer"]
    drawn = f"; {one['bootstrap']} resamples of {one['units']} {one['unit']}" if one["interval"] is not None else ""
    few = "; with so few, intervals are too narrow and p too small" if one["units"] < text.FEW else ""
    said = [
        f"{found['path']}: {found['utterances']} utterances, {found['seconds'] / 60:.1f} minutes, greedy decoding, "
        f"normaliser {found['normaliser']}{drawn}{few}",
        *text.table(["", "before", "after", "difference", f"{100 * one['confidence']:g}% interval", "p"], rows),
    ]
    if found["set_aside"]:
        reasons: dict[str, list[str]] = {}
        for name, reason, *_ in found["set_aside"]:
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            more = f" and {len(names) - 3} more" if names[3:] else ""
            said.append(f"not evaluated: {len(names)} x {reason} ({', '.join(names[:3])}{more})")
    return said
