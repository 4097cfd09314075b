"""Which utterances a task can use: the others are set aside, with the reason, and counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.lang.targets import ctc_frames_needed

TAIL = 0.02  # seconds


@dataclass
class SetAside:
    """Utterances that cannot be used, with the reason; they are listed in ``set_aside.tsv`` and counted."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)  # id, reason, detail

    def add(self, cut_id: str, reason: str, detail: str = "") -> None:
        self.rows.append((cut_id, reason, detail))

    def counts(self) -> dict[str, int]:
        return dict(Counter(reason for _, reason, _ in self.rows))

    def summary(self) -> str:
        return ", ".join(f"{n} x {reason}" for reason, n in sorted(self.counts().items())) or "none"


def usable_text(cuts: Any, lang: Any, set_aside: SetAside) -> list[Any]:
    """The cuts that have a text which does not normalise to nothing; the others are set aside."""
    kept = []
    for cut in cuts:
        supervision = cut.supervisions[0]
        reason = lang.usable(supervision.text, supervision.language)
        if reason is None:
            kept.append(cut)
        else:
            set_aside.add(cut.id, reason, repr(supervision.text))
    return kept


def possible_ctc(cuts: Sequence[Any], lang: Any, frames: Any, set_aside: SetAside) -> list[Any]:
    """The cuts whose CTC target fits: labels + adjacent repeats <= frames. ``frames(cut)`` gives the model's frames."""
    kept = []
    for cut in cuts:
        supervision = cut.supervisions[0]
        ids = lang.tokens.encode(lang.normalise(supervision.text, supervision.language))
        needed, got = ctc_frames_needed(ids), frames(cut)
        if needed <= got:
            kept.append(cut)
        else:
            set_aside.add(cut.id, "CTC target longer than its frames", f"{needed} needed, {got} frames")
    return kept


def fits_window(cuts: Sequence[Any], seconds: float | None, set_aside: SetAside) -> list[Any]:
    """The cuts of at most ``seconds`` (a model's fixed window; None: no limit); the others are set aside."""
    if seconds is None:
        return list(cuts)
    kept = []
    for cut in cuts:
        # Stored features have two frames more than the window, which see the end of an utterance that fills it.
        limit = seconds if getattr(cut, "has_features", False) else seconds - TAIL
        if cut.duration <= limit + 1e-6:
            kept.append(cut)
        else:
            set_aside.add(cut.id, "longer than the model's window", f"{cut.duration:.2f} s, window {limit:.2f} s")
    return kept


def known_language(cuts: Any, labels: Sequence[str], set_aside: SetAside) -> list[Any]:
    """The cuts whose language is one of ``labels``; the others are set aside."""
    kept = []
    for cut in cuts:
        language = cut.supervisions[0].language
        if language in labels:
            kept.append(cut)
        else:
            set_aside.add(cut.id, "unknown language", f"{language!r} is none of {', '.join(labels)}")
    return kept


def spoken(cuts: Any) -> list[str]:
    """The languages of ``cuts``, sorted, for language classification beside recognition; UserError where one lacks."""
    found = {cut.id: cut.supervisions[0].language for cut in cuts}
    unknown = next((name for name, language in found.items() if language is None), None)
    if unknown is not None:
        raise UserError(
            f"utterance {unknown} has no language, which `language_weight` needs; give it one, or set that to 0"
        )
    return sorted(set(found.values()))


def require(cuts: Sequence[Any], what: str, set_aside: SetAside) -> None:
    """UserError where nothing is left to work on."""
    if not cuts:
        raise UserError(f"{what}: no utterance is left; set aside: {set_aside.summary()}")
