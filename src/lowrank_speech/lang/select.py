"""Which utterances a task can use: the others are set aside, with the reason, and counted.

The functions take an iterable and yield cut by cut, so that a corpus passes through a chain of them without being held
in memory.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lowrank_speech.errors import UserError

TAIL = 0.02  # seconds


class Reason(NamedTuple):
    """Why an utterance is set aside: the reason, which is counted, and what was found."""

    reason: str
    detail: str = ""


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
    """The cuts that have exactly one supervision: of the others it is not known what was said when."""
    for cut in cuts:
        number = len(cut.supervisions)
        if number == 1:
            yield cut
        else:
            set_aside.add(cut.id, "not one supervision", f"{number} of them")


def usable_text(cuts: Iterable[Any], lang: Any, set_aside: SetAside) -> Iterator[Any]:
    """The cuts whose text is not empty after normalisation; the others are set aside."""
    for cut in cuts:
        supervision = cut.supervisions[0]
        reason = lang.usable(supervision.text, supervision.language)
        if reason is None:
            yield cut
        else:
            set_aside.add(cut.id, reason, repr(supervision.text))


def fits_window(cuts: Iterable[Any], seconds: float | None, set_aside: SetAside, slowest: float = 1.0) -> Iterator[Any]:
    """The cuts of at most ``seconds`` (a model's fixed window; None: no limit); the others are set aside.

    ``slowest``: the lowest speed at which they are played.
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
        found = known_or_reason(cut.supervisions[0].language, labels)
        if isinstance(found, Reason):
            set_aside.add(cut.id, *found)
        else:
            yield cut


def known_or_reason(language: str | None, labels: Sequence[str]) -> str | Reason:
    """``language`` if it is one of ``labels``, else why an utterance in it is set aside."""
    if language in labels:
        return language
    return Reason("unknown language", f"{language!r}, expected one of: {', '.join(labels)}")


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
                f"utterance {self.without} has no language, which `language_weight` needs; give it one, or set "
                f"language_weight: 0"
            )
        return sorted(self.counts)


def require(cuts: Sized, what: str, set_aside: SetAside) -> None:
    """UserError where nothing is left to work on."""
    if not cuts:
        raise UserError(f"{what}: no utterance is left; set aside: {set_aside.summary()}")
