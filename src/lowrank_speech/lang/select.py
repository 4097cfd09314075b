"""Which utterances a task can use: the others are set aside, with the reason, and counted.

The functions take an iterable and yield cut by cut, so that a corpus passes through a chain of them without lying in
memory.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
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


def one_supervision(cuts: Iterable[Any], set_aside: SetAside) -> Iterator[Any]:
    """The cuts that have one supervision: what was said when is not known of others."""
    for cut in cuts:
        number = len(cut.supervisions)
        if number == 1:
            yield cut
        else:
            set_aside.add(cut.id, "not one supervision", f"{number} of them")


def usable_text(cuts: Iterable[Any], lang: Any, set_aside: SetAside) -> Iterator[Any]:
    """The cuts that have a text which does not normalise to nothing; the others are set aside."""
    for cut in cuts:
        supervision = cut.supervisions[0]
        reason = lang.usable(supervision.text, supervision.language)
        if reason is None:
            yield cut
        else:
            set_aside.add(cut.id, reason, repr(supervision.text))


def writable_text(cuts: Iterable[Any], lang: Any, set_aside: SetAside) -> Iterator[Any]:
    """The cuts with a character in their text that the token set has: of others a training learns <unk> alone."""
    for cut in cuts:
        supervision = cut.supervisions[0]
        if lang.writes_nothing_of(supervision.text, supervision.language):
            set_aside.add(cut.id, "no character of the token set", repr(supervision.text))
        else:
            yield cut


def possible_ctc(cuts: Iterable[Any], lang: Any, frames: Any, set_aside: SetAside) -> Iterator[Any]:
    """The cuts whose CTC target fits: labels + adjacent repeats <= frames. ``frames(cut)`` gives the model's frames."""
    for cut in cuts:
        supervision = cut.supervisions[0]
        ids = lang.tokens.encode(lang.normalise(supervision.text, supervision.language))
        needed, got = ctc_frames_needed(ids), frames(cut)
        if needed <= got:
            yield cut
        else:
            set_aside.add(cut.id, "CTC target longer than its frames", f"{needed} needed, {got} frames")


def fits_window(cuts: Iterable[Any], seconds: float | None, set_aside: SetAside, slowest: float = 1.0) -> Iterator[Any]:
    """The cuts of at most ``seconds`` (a model's fixed window; None: no limit); the others are set aside.

    ``slowest``: the lowest factor of the speed at which they are to be heard.
    """
    for cut in cuts:
        if seconds is None:
            yield cut
            continue
        # Stored features have two frames more than the window, which see the end of an utterance that fills it.
        limit = (seconds if getattr(cut, "has_features", False) else seconds - TAIL) * min(slowest, 1.0)
        if cut.duration <= limit + 1e-6:
            yield cut
        else:
            set_aside.add(cut.id, "longer than the model's window", f"{cut.duration:.2f} s, window {limit:.2f} s")


def known_language(cuts: Iterable[Any], labels: Sequence[str], set_aside: SetAside) -> Iterator[Any]:
    """The cuts whose language is one of ``labels``; the others are set aside."""
    for cut in cuts:
        language = cut.supervisions[0].language
        if language in labels:
            yield cut
        else:
            set_aside.add(cut.id, "unknown language", f"{language!r} is none of {', '.join(labels)}")


@dataclass
class Languages:
    """The languages of the cuts that pass through ``over``: number of cuts of each, first cut without one."""

    counts: Counter = field(default_factory=Counter)
    without: str | None = None

    def over(self, cuts: Iterable[Any]) -> Iterator[Any]:
        for cut in cuts:
            language = cut.supervisions[0].language
            if language is None:
                self.without = self.without or cut.id
            else:
                self.counts[language] += 1
            yield cut

    def spoken(self) -> list[str]:
        """All of them, sorted, for language classification beside recognition; UserError where a cut has none."""
        if self.without is not None:
            raise UserError(
                f"utterance {self.without} has no language, which `language_weight` needs; give it one, or set that to "
                f"0"
            )
        return sorted(self.counts)


def require(cuts: Sized, what: str, set_aside: SetAside) -> None:
    """UserError where nothing is left to work on."""
    if not cuts:
        raise UserError(f"{what}: no utterance is left; set aside: {set_aside.summary()}")
