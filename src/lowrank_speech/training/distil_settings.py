"""Settings of distillation (``training.losses.distil``). Imports only pydantic, nothing heavy."""

from typing import Annotated

from pydantic import Field

from lowrank_speech.settings import NotNegative, Positive, key, settings

BASE = "base"
"""The value of ``teacher`` that stands for the system's base."""


@settings
class DistilSettings:
    """What a student learns from a teacher, beside the transcripts (or instead of them)."""

    teacher: Annotated[str, Field(min_length=1)] = key(
        BASE, "base: the dense base of the system; or a method, whose system on the same base and task is the teacher"
    )
    logits: NotNegative = key(1.0, "weight of the divergence between the outputs of teacher and student")
    temperature: Positive = key(2.0, "the logits of both are divided by this")
    hidden: NotNegative = key(0.0, "weight of the relative squared error of the states after each encoder layer")
    transcripts: NotNegative = key(1.0, "weight of the task's own loss; 0: learn only from the teacher")

    def __post_init__(self) -> None:
        if not self.logits and not self.hidden:
            raise ValueError("logits and hidden are both 0, so nothing is distilled; set one of them, or remove distil")
