"""Warnings about language recognition: controls that come near the systems, and splits that share speakers.

A control has no way to know languages: a linear classifier on the mean log-mel of an utterance knows its channel and
voice, one that was trained on shuffled labels knows nothing. If it comes near a system, the test set says little about
languages.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lowrank_speech.reporting import units
from lowrank_speech.reporting.manifests import load_manifest
from lowrank_speech.reporting.systems import Result, System

MARGIN = 0.1
"""A control is near if its accuracy is at most this far below that of the best system."""


def warnings(root: Path, systems: Sequence[System], tasks: Iterable[str]) -> list[str]:
    """All of them, a sentence each."""
    return [*near_controls(systems), *shared(root, tasks)]


def near_controls(systems: Sequence[System]) -> list[str]:
    """A sentence for each control near the best system of its task and base, on a test set and with a decoder.

    If the best one is the base without adaptation, the best of the trained systems counts as well.
    """

    def of(system: System) -> tuple[str, str]:
        return system.name.task, system.name.base

    found = []
    for control in (s for s in systems if s.control):
        rivals = [s for s in systems if not s.control and of(s) == of(control)]
        for mine in control.results:
            if mine.error is None:
                continue
            best = {}
            for what, some in (("trained system", [s for s in rivals if not s.unadapted]), ("system", rivals)):
                scored = [r for s in some if (r := s.result(mine.test, mine.decoder)) is not None]
                scored = [r for r in scored if r.error is not None]
                if scored:
                    best[str(min(scored, key=lambda result: result.error))] = what, min(scored, key=lambda r: r.error)
            for what, rival in best.values():
                if why := _near(mine, rival):
                    found.append(
                        f"{mine.system.task} on {mine.test} ({mine.decoder}): the control {control.name.method} "
                        f"({control.control}) has an accuracy of {_share(mine)} %, the best {what} "
                        f"({rival.system.method}) {_share(rival)} %: {why}, so this test set does not show that it "
                        f"recognises languages"
                    )
    return found


def _near(control: Result, best: Result) -> str:
    """Why a control is near a system; empty if it is not."""
    if control.error <= best.error:
        return "the control is not worse"
    mine, theirs = control.error_interval, best.error_interval
    if mine is not None and theirs is not None and mine[0] <= theirs[1]:
        return "their intervals overlap"
    if control.error - best.error <= MARGIN:
        return f"they are less than {100 * MARGIN:g} points apart"
    return ""


def _share(result: Result) -> str:
    return units.percent(1.0 - result.error)


def shared(root: Path, tasks: Iterable[str]) -> list[str]:
    """A sentence for each pair of splits of a language recognition task that share speakers, sources or sessions."""
    found = []
    for task in tasks:
        path = root / "overlap" / task / "overlap.json"
        if not path.is_file():
            continue
        record = load_manifest(path, "overlap")
        for what in record["cfg"].get("apart") or ():
            for row in record["metrics"].get(f"shared_{what}") or ():
                roles = row["role"], row["other_role"]
                weak = "so dev chooses epochs, and trains back ends, on what training has heard"
                if "test" in roles:
                    weak = f"so the results do not hold for other {what}"
                found.append(
                    f"{task}: {roles[0]} ({row['split']}) and {roles[1]} ({row['other_split']}) share {row[what]} "
                    f"{what}, such as {row['examples'][0]}, {weak}"
                )
    return found
