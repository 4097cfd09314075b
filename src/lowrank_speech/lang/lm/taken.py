"""A quick look at a model that another program made, before the first job runs: its start and its end."""

from pathlib import Path

from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm import arpa, kenlm_file
from lowrank_speech.lang.lm.query import NEEDS_KENLM, has_kenlm


def order(path: Path) -> int:
    """The order of the model. UserError: neither ARPA nor KenLM binary, truncated, or kenlm is missing."""
    if not kenlm_file.is_binary(path):
        return len(arpa.counts(path))
    found = kenlm_file.describe(path)
    if not has_kenlm():
        raise UserError(NEEDS_KENLM.format(path=path))
    return found.order
