"""What a CTC target needs of the frames it is aligned with."""

import itertools
from collections.abc import Sequence


def ctc_frames_needed(ids: Sequence[int]) -> int:
    """The smallest number of frames that CTC can emit ``ids`` in: one per label, and a blank between equal neighbours.

    With fewer frames the loss is infinite (and torch's gradient NaN). Source: Graves et al. 2006, section 3.
    """
    return len(ids) + sum(left == right for left, right in itertools.pairwise(ids))
