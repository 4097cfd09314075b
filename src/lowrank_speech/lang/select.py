"""Select the utterances that a task can use; the others are set aside with a reason, and counted.

The functions are generators over cuts, so a corpus can pass through a chain of them without being held in memory.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lowrank_speech.errors import UserError

TAIL = 0.02  # seconds


class Reason(NamedTuple):
    """Why an utterance is set aside: a fixed reason, which is counted, and a detail."""

    reason: str
    detail: str = ""


@dataclass
class SetAside:
    """Utterances that cannot be used, with the reason; for ``set_aside.tsv`` and the counts in the manifest."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)  # id, reason, detail

    def add(self, cut_id: str, reason: str, detail: str = "") -> None:
        self.rows.append((cut_id, reason, detail))

    def counts(self) -> dict[str, int]:
        return dict(Counter(reason for _, reason, _ in self.rows))

    def summary(self) -> str:
        return ", ".join(f"{n} x {reason}" for reason, n in sorted(self.counts().items())) or "none"


def one_supervision(cuts: Iterable[Any], set_aside: SetAside) -> Iterator[Any]:
    """Yield the cuts with exactly one supervision. For other cuts it is unknown what was said when."""
    for cut in cuts:
        number = len(cut.supervisions)
        if number == 1:
            yield cut
        else:
            set_aside.add(cut.id, "not one supervision", f"{number} of them")


def usable_text(cuts: Iterable[Any], lang: Any, set_aside: SetAside) -> Iterator[Any]:
    """Yield the cuts whose text is not empty after normalisation; set the others aside."""
    for cut in cuts:
        supervision = cut.supervisions[0]
        reason = lang.usable(supervision.text, supervision.language)
        if reason is None:
            yield cut
        else:
            set_aside.add(cut.id, reason, repr(supervision.text))


def fits_window(cuts: Iterable[Any], seconds: float | None, set_aside: SetAside, slowest: float = 1.0) -> Iterator[Any]:
    """Yield the cuts of at most ``seconds`` (a model's fixed window; None: no limit); set the others aside.

    ``slowest``: lowest factor of speed augmentation.
    """
    for cut in cuts:
        if seconds is None:
            yield cut
            continue
        # Stored features have two frames more than the window, for the end of an utterance that fills it.
        limit = (seconds if getattr(cut, "has_features", False) else seconds - TAIL) * min(slowest, 1.0)
        if cut.duration <= limit + 1e-6:
            yield cut
        else:
            set_aside.add(cut.id, "longer than the model's window", f"{cut.duration:.2f} s, window {limit:.2f} s")


def known_language(cuts: Iterable[Any], labels: Sequence[str], set_aside: SetAside) -> Iterator[Any]:
    """Yield the cuts whose language is one of ``labels``; set the others aside."""
    for cut in cuts:
        found = known_or_reason(cut.supervisions[0].language, labels)
        if isinstance(found, Reason):
            set_aside.add(cut.id, *found)
        else:
            yield cut


def long_enough(cuts: Iterable[Any], seconds: float, set_aside: SetAside) -> Iterator[Any]:
    """Yield the cuts of at least ``seconds``; set the others aside."""
    for cut in cuts:
        if cut.duration >= seconds - TAIL:
            yield cut
        else:
            set_aside.add(
                cut.id, "shorter than the pieces of the test set", f"{cut.duration:.2f} s, less than {seconds:g} s"
            )


def labelled(cuts: Iterable[Any], set_aside: SetAside) -> Iterator[Any]:
    """Yield the cuts that have a language; set the others aside."""
    for cut in cuts:
        if cut.supervisions[0].language:
            yield cut
        else:
            set_aside.add(cut.id, "no language", "an open-set test needs the language of each utterance")


def known_or_reason(language: str | None, labels: Sequence[str]) -> str | Reason:
    """``language`` if it is one of ``labels``, else the reason to set the utterance aside."""
    if language in labels:
        return language
    return Reason("unknown language", f"{language!r}, expected one of: {', '.join(labels)}")


@dataclass
class Languages:
    """Counts the languages of the cuts that pass through ``over``, and records the first cut without a language."""

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
        """Sorted languages, for the auxiliary language classification. UserError: a cut has no language."""
        if self.without is not None:
            raise UserError(
                f"utterance {self.without} has no language, but `language_weight` needs one; add it, or set "
                f"language_weight: 0"
            )
        return sorted(self.counts)


def require(cuts: Sized, what: str, set_aside: SetAside) -> None:
    """UserError if no utterance is left."""
    if not cuts:
        raise UserError(f"{what}: no utterance is left; set aside: {set_aside.summary()}")
