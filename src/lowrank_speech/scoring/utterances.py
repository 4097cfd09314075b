"""The table of utterances that the stage score writes, from which systems are compared: counts of each, and its unit.

    id  speaker  language  seconds            speaker, language and seconds are empty where they are not known
    recognition: words  substitutions  deletions  insertions  characters  char_...  wrong, and tokens  token_...
    languages:   right (share of the decision for the true language)  cost

The actual C_primary is the mean over languages of the mean ``cost`` of their segments: a miss costs 1, a false alarm
beta / (N - 1) for N languages, averaged over the target priors (``scoring.detection``).
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lowrank_speech.scoring.options import ScoreOptions

NAME = "utterances.tsv"
FACTS = ("speaker", "language", "seconds")
WORDS = ("words", "substitutions", "deletions", "insertions")
CHARACTERS = ("characters", "char_substitutions", "char_deletions", "char_insertions")
TOKENS = ("tokens", "token_substitutions", "token_deletions", "token_insertions")
SEGMENT = ("right", "cost")
TYPES = {"asr": (*WORDS, *CHARACTERS), "lid": SEGMENT}
"""Type of task -> columns that its table has."""

Facts = Mapping[str, Mapping[str, Any] | None]


def rows(values: pd.DataFrame, facts: Facts) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the file; ``values``: one row per utterance, indexed by id; ``facts``: name -> id -> value."""
    header = ["id", *FACTS, *values.columns]
    known = {name: facts.get(name) or {} for name in FACTS}
    found = []
    for name, *cells in values.itertuples():
        found.append([name, *(known[fact].get(name, "") for fact in FACTS), *cells])
    return header, found


def read(path: str | Path, kind: str) -> pd.DataFrame:
    """Read the table of a task of type ``kind`` (asr, lid), indexed by id. ValueError: it is missing or not valid."""
    path = Path(path)
    try:
        table = pd.read_csv(
            path,
            sep="\t",
            dtype={"id": str, "speaker": str, "language": str},
            keep_default_na=False,
            na_values={"seconds": [""]},
            quoting=csv.QUOTE_NONE,
            encoding="utf-8",
        )
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; run the stage score again") from error
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise ValueError(f"{path} is not a table of utterances: {' '.join(str(error).split())}; score again") from error
    missing = [name for name in ("id", *FACTS, *TYPES[kind]) if name not in table]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; run the stage score again")
    if not len(table):
        raise ValueError(f"{path} has no utterance; run the stage score again")
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"{path} has a line with more fields than its header; run the stage score again")
    for name in TYPES[kind]:
        if not pd.api.types.is_numeric_dtype(table[name]) or not np.isfinite(table[name]).all():
            raise ValueError(f"{path}: the column {name!r} has a value that is not a number; run the stage score again")
    if table["id"].duplicated().any():
        raise ValueError(f"{path}: utterance {table['id'][table['id'].duplicated()].iloc[0]!r} occurs twice")
    return table.set_index("id")


def of_languages(
    ids: Sequence[str], languages: Sequence[str], scores: np.ndarray, labels: Mapping[str, str], options: ScoreOptions
) -> pd.DataFrame:
    """The columns ``SEGMENT`` of segments that ``scoring.lid.check`` accepts."""
    from lowrank_speech.scoring import lid
    from lowrank_speech.scoring.survey import Survey

    found = Survey.of(scores, lid.check(ids, languages, scores, labels), options.betas)
    values = {"right": found.right, "cost": found.cost.mean(axis=1) * found.n}
    return pd.DataFrame(values, index=pd.Index(ids, name="id"))
