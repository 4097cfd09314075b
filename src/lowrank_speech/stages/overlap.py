"""Stage overlap: check whether the splits of a task share utterances, audio, speakers, sources or sessions.

inputs   --split     ROLE=FILE for each split: the index that the stage corpus wrote. Roles: pretrain, train,
                     untranscribed (distillation), lm (text of language models), dev, test
outputs  --manifest  overlap.json: what the splits share, with counts and examples
         shared.tsv beside it: every utterance that may not be shared

cfg      roles         for the manifest: role -> corpus/split
         apart         what train, dev and test must not share: speakers, sources, sessions
         allow_shared  exceptions: speakers, sources or sessions -> the roles that may share them

No utterance of a training role (pretrain, train, untranscribed, lm) may occur in dev or test, and no utterance of dev
in test. Two utterances are the same if they have equal ids within one corpus, or equal samples. If splits share an
utterance, the stage ends with exit code 2. Training roles may share anything.

Shared speakers are only reported, except in language recognition (``apart``): there a speaker, a source or a session
(the ``custom`` fields of supervisions) on both sides is an error too, because a classifier may learn it instead of the
language.
``allow_shared`` names the roles that may share them; then they are reported.

python -m lowrank_speech.stages.overlap --cfg '{}' --manifest exp/overlap/asr/overlap.json
    --split train=exp/corpus/ocean/train.index.tsv --split test=exp/corpus/ocean/test.index.tsv
"""

import argparse
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lowrank_speech import settings
from lowrank_speech.artefact import write_table
from lowrank_speech.errors import UserError
from lowrank_speech.settings import key
from lowrank_speech.stages import common
from lowrank_speech.stages.task import Shared

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("lowrank_speech")

ROLES = ("pretrain", "train", "untranscribed", "lm", "dev", "test")
TRAINING = {"pretrain", "train", "untranscribed", "lm"}
"""Roles that may share anything. Any other two roles may share no utterance."""
COLUMNS = ("id", "speaker", "sha256")
OPTIONAL = ("source", "session")
"""Columns that indices of older versions do not have."""
HEARD = {"pretrain", "train", "untranscribed", "dev", "test"}
"""Roles whose speech a system hears."""
What = Literal["speakers", "sources", "sessions"]
SUFFIX = ".index.tsv"
EXAMPLES = 5
HEADER = ("what", "role", "split", "id", "other_role", "other_split", "other_id")


@settings.settings
class Config:
    """The stage's slice."""

    roles: dict[str, tuple[str, ...]] = key(
        None, "role -> its splits as corpus/split, for the manifest (indices: --split)", default_factory=dict
    )
    apart: tuple[What, ...] = key((), "what train, dev and test must not share")
    allow_shared: Shared = key(None, "what some of them may share all the same", default_factory=Shared)


class Split(NamedTuple):
    """A split in its role. ``name`` is corpus/split."""

    role: str
    path: Path
    name: str
    rows: "pd.DataFrame"

    @property
    def corpus(self) -> Path:
        """The folder of its corpus. Ids are unique only within a corpus."""
        return self.path.parent


def add(parser: argparse.ArgumentParser) -> None:
    """Declare inputs."""
    parser.add_argument(
        "--split",
        action="append",
        required=True,
        metavar="ROLE=FILE",
        help=f"input: the index of a split ({{split}}{SUFFIX}) and its role, one of {', '.join(ROLES)}",
    )


def body(run: common.Run) -> None:
    """Read, compare, write."""
    arguments = run.arguments
    splits = [read_split(text) for text in dict.fromkeys(arguments.split)]
    pairs = itertools.combinations(splits, 2)
    apart = [(a, b) for a, b in pairs if a.role != b.role and not {a.role, b.role} <= TRAINING]
    rows = [row for one, other in apart for row in shared(one, other)]
    listed = arguments.manifest.with_name("shared.tsv")
    write_table(listed, HEADER, rows)
    if rows:
        raise UserError(refusal(rows, splits, listed))
    heard = [(one, other) for one, other in apart if {one.role, other.role} <= HEARD]
    found = {}
    for what in dict.fromkeys(("speakers", *run.config.apart)):
        found[f"shared_{what}"] = [row for one, other in heard if (row := in_both(what, one, other)) is not None]
        for row in found[f"shared_{what}"]:
            check_apart(what, row, run.config, splits)
            log.warning(
                "overlap: %(number)d %(what)s of %(role)s (%(split)s) are also in %(other_role)s (%(other_split)s), "
                "such as %(first)s: results there do not hold for unknown %(what)s",
                {**row, "what": what, "number": row[what], "first": row["examples"][0]},
            )
    tell_unknown(run.config.apart, splits)
    used = [{"role": split.role, "split": split.name, "utterances": len(split.rows)} for split in splits]
    run.finish([listed], {"splits": used, **found})


def read_split(text: str) -> Split:
    """Read a split from its option. UserError: the option is not ROLE=FILE, or the file is not an index."""
    import pandas as pd

    role, _, name = text.partition("=")
    if role not in ROLES or not name:
        raise UserError(f"--split: expected ROLE=FILE with a role of {', '.join(ROLES)}, got {text!r}")
    path = common.existing(name, "--split")
    try:
        rows = pd.read_csv(
            path,
            sep="\t",
            usecols=lambda name: name in (*COLUMNS, *OPTIONAL),
            dtype=str,
            keep_default_na=False,
            quoting=3,
        )
        if missing := [name for name in COLUMNS if name not in rows]:
            raise ValueError(f"it has no column {missing[0]!r}")
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path}: not an index of the stage corpus ({' '.join(str(error).split())}); make it again"
        ) from error
    return Split(role, path, f"{path.parent.name}/{path.name.removesuffix(SUFFIX)}", rows)


def shared(one: Split, other: Split) -> list[tuple[str, ...]]:
    """Utterances that two splits must not share, as rows of shared.tsv: equal samples, or equal ids in one corpus."""
    columns = ["sha256"] + (["id"] if one.corpus.resolve() == other.corpus.resolve() else [])
    result = []
    for column in columns:
        mine = one.rows[one.rows[column].isin(other.rows[column])]
        # One partner is enough: a sound that each has a thousand times would make a million rows.
        met = mine.merge(other.rows.drop_duplicates(column), on=column, suffixes=("", "_other"))
        others = met["id"] if column == "id" else met["id_other"]
        what = "samples" if column == "sha256" else "id"
        result += [
            (what, one.role, one.name, a, other.role, other.name, b) for a, b in zip(met["id"], others, strict=True)
        ]
    return result


def in_both(what: str, one: Split, other: Split) -> dict[str, Any] | None:
    """The ``what`` (speakers, sources, sessions) that two splits of different roles share; None: there are none."""
    known = [set(split.rows.get(what.removesuffix("s"), ())) - {""} for split in (one, other)]
    if not (found := sorted(known[0] & known[1])):
        return None
    return {
        "role": one.role,
        "split": one.name,
        "other_role": other.role,
        "other_split": other.name,
        what: len(found),
        "examples": found[:EXAMPLES],
    }


def check_apart(what: str, row: dict[str, Any], config: Config, splits: Sequence[Split]) -> None:
    """Raise UserError if the roles of ``row`` (from ``in_both``) must not share ``what``."""
    roles = {"train" if role == "untranscribed" else role for role in (row["role"], row["other_role"])}
    if what not in config.apart or "pretrain" in roles or roles <= set(getattr(config.allow_shared, what)):
        return
    sides = []
    for role, name in ((row["role"], row["split"]), (row["other_role"], row["other_split"])):
        split = next(one for one in splits if (one.role, one.name) == (role, name))
        with_it = split.rows[split.rows[what.removesuffix("s")] == row["examples"][0]]
        sides.append(f"{role} ({split.path}, utterance {with_it['id'].iloc[0]})")
    more = f", and {row[what] - 1} more {what} are" if row[what] > 1 else ""
    raise UserError(
        f"{what.removesuffix('s')} {row['examples'][0]!r} is in {sides[0]} and in {sides[1]}{more}: a language "
        f"recogniser could learn {what} instead of languages; choose splits without common {what}, or accept it with "
        f"the task's allow_shared: {{{what}: [{', '.join(sorted(roles))}]}}, and the report warns"
    )


def tell_unknown(apart: Sequence[str], splits: Sequence[Split]) -> None:
    """Log the splits in which speakers are not known, so that nobody takes silence for a check."""
    for split in splits:
        unknown = int((split.rows["speaker"] == "").sum())
        if "speakers" in apart and split.role in HEARD and unknown:
            log.warning(
                "overlap: %d of %d utterances of %s (%s) have no speaker, so shared ones would go unnoticed",
                unknown, len(split.rows), split.role, split.name,
            )  # fmt: skip


def refusal(rows: Sequence[tuple[str, ...]], splits: Sequence[Split], listed: Path) -> str:
    """One line: the first shared utterance, its files, how many more there are, and what to do."""
    what, role, split, name, other_role, other_split, other_name = rows[0]
    paths = {(s.role, s.name): s.path for s in splits}
    first, second = paths[role, split], paths[other_role, other_split]
    same = "have the same samples" if what == "samples" else "have the same id"
    more = len({row[1:4] for row in rows}) - 1
    return (
        f"utterance {name} of {role} ({first}) and {other_name} of {other_role} ({second}) {same}"
        + (f", and {more} more are shared, see {listed}" if more else "")
        + f": results on {other_role} would be meaningless; remove them from one split, or choose other splits"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return common.main("overlap", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
