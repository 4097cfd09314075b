"""Store the targets of a cut in the cut itself, under the names of the losses."""

from typing import Any

from lhotse.utils import fastcopy

KEY = "targets"


def with_targets(cut: Any, targets: dict[str, Any]) -> Any:
    """A copy of ``cut`` with JSON-serialisable targets by the names of the losses."""
    if hasattr(cut, "tracks"):  # a MixedCut has no custom fields; its first track with speech has them
        tracks, number = list(cut.tracks), next(i for i, t in enumerate(cut.tracks) if hasattr(t.cut, "supervisions"))
        tracks[number] = fastcopy(tracks[number], cut=with_targets(tracks[number].cut, targets))
        return fastcopy(cut, tracks=tracks)
    return fastcopy(cut, custom={**(cut.custom or {}), KEY: targets})


def targets_of(cut: Any) -> dict[str, Any]:
    """The targets that ``with_targets`` gave to ``cut``."""
    if hasattr(cut, "tracks"):
        return next(t.cut.custom[KEY] for t in cut.tracks if KEY in (getattr(t.cut, "custom", None) or {}))
    return cut.custom[KEY]
