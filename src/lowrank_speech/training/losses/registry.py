"""The losses by name: a new one is one file of that name in this package, and one name and one ``case`` here.

Imports are statements, each below its name, so that a code hash can leave out unused losses.
"""

from lowrank_speech.errors import UserError

NAMES = ("ctc", "seq2seq", "language")
OF_TASK = {"ctc": "ctc", "seq2seq": "seq2seq", "classify": "language"}
"""The loss of each task of a model, where the recipe names none."""


def loss_class(name: str) -> type:
    """The subclass of ``Loss`` called ``name``. UserError where there is none."""
    match name:
        case "ctc":
            from lowrank_speech.training.losses.ctc import Ctc

            return Ctc
        case "seq2seq":
            from lowrank_speech.training.losses.seq2seq import Seq2seq

            return Seq2seq
        case "language":
            from lowrank_speech.training.losses.language import Classify

            return Classify
    raise UserError(f"training.loss: {name!r} is not a known loss; expected one of: {', '.join(NAMES)}")
