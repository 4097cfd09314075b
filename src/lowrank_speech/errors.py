"""The errors that a person can mend, and the stop that is none: shown as one line, without a traceback."""


class UserError(Exception):
    """Bad input or a bad setting. The message names file, utterance and value, and says what to do."""


class Stopped(Exception):  # noqa: N818  (it is no error)
    """The run was asked to stop and has saved its state; the same command goes on. Ends a stage with ``STOPPED``."""


# EX_TEMPFAIL of sysexits.h: not 0, so that Snakemake and SLURM try again, and not 2, the code after a UserError.
STOPPED = 75
