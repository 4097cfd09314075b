"""Exceptions that stages and commands report as one line, without a traceback."""


class UserError(Exception):
    """Bad input or a bad setting. The message names file, utterance and value, and says what to do."""


class Stopped(Exception):  # noqa: N818  (not an error)
    """The run was asked to stop and has saved its state; the same command resumes it. The exit code is ``STOPPED``."""


# EX_TEMPFAIL of sysexits.h: not 0, so that Snakemake and SLURM try again, and not 2, the exit code of a UserError.
STOPPED = 75
