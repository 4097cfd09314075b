"""The losses by name. To add one, add a file of that name to this package, and a name and a ``case`` here.

Each ``case`` has its own import statement, so that a code hash can leave out unused losses.
"""

from lowrank_speech.errors import UserError

NAMES = ("ctc", "lfmmi", "seq2seq", "language", "aam")
OF_TASK = {"ctc": "ctc", "seq2seq": "seq2seq", "classify": "language"}
"""The default loss for each task of a model."""
TASK_OF = {"ctc": "ctc", "lfmmi": "ctc", "seq2seq": "seq2seq", "language": "classify", "aam": "classify"}
"""The task of each loss, for the check of the config. The stages ask the class itself (``Loss.tasks``)."""


def loss_class(name: str) -> type:
    """The subclass of ``Loss`` called ``name``. Raises UserError if it does not exist."""
    match name:
        case "ctc":
            from lowrank_speech.training.losses.ctc import Ctc

            return Ctc
        case "lfmmi":
            from lowrank_speech.training.losses.lfmmi import Lfmmi

            return Lfmmi
        case "seq2seq":
            from lowrank_speech.training.losses.seq2seq import Seq2seq

            return Seq2seq
        case "language":
            from lowrank_speech.training.losses.language import Classify

            return Classify
        case "aam":
            from lowrank_speech.training.losses.aam import Aam

            return Aam
    raise UserError(f"training.loss: {name!r} is not a known loss; expected one of: {', '.join(NAMES)}")
