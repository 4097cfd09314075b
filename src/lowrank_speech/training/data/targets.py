"""Where the targets of a cut are kept: in the cut, under the names of the losses, so that they travel with it."""

from typing import Any

from lhotse.utils import fastcopy

KEY = "targets"


def with_targets(cut: Any, targets: dict[str, Any]) -> Any:
    """A copy of ``cut`` with its targets by the names of the losses, of types that JSON has."""
    if hasattr(cut, "tracks"):  # a mixture keeps nothing of its own: its first speech does
        tracks, number = list(cut.tracks), next(i for i, t in enumerate(cut.tracks) if hasattr(t.cut, "supervisions"))
        tracks[number] = fastcopy(tracks[number], cut=with_targets(tracks[number].cut, targets))
        return fastcopy(cut, tracks=tracks)
    return fastcopy(cut, custom={**(cut.custom or {}), KEY: targets})


def targets_of(cut: Any) -> dict[str, Any]:
    """The targets that ``with_targets`` gave to ``cut``."""
    if hasattr(cut, "tracks"):
        return next(t.cut.custom[KEY] for t in cut.tracks if KEY in (getattr(t.cut, "custom", None) or {}))
    return cut.custom[KEY]
