"""The error that a person can mend: shown as one line, without a traceback."""


class UserError(Exception):
    """Bad input or a bad setting. The message names file, utterance and value, and says what to do."""
