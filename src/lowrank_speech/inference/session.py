"""What the commands that read recordings share: arguments, standard input, progress, output, exit codes.

0     every recording has a result
1     some have none; standard error names them and says why
2     the command cannot start: wrong arguments, no such model, an output that cannot be written
130   Ctrl-C; what was done is written
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer

from lowrank_speech.errors import UserError
from lowrank_speech.inference.arguments import Named, check_stems, recordings, standard_input
from lowrank_speech.quiet import quiet

FAILED, INTERRUPTED = 1, 130


def prepare(audio: Sequence[str], output: Path | None) -> list[Named]:
    """The recordings of a command. UserError: there are none, or ``output`` cannot be written."""
    quiet()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s", force=True)
    found, remarks = recordings(audio)
    for remark in remarks:
        typer.echo(remark, err=True)
    if output is None:
        return found
    found = check_stems(found)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {output} cannot be made: {error.strerror}; give another folder") from error
    if not os.access(output, os.W_OK | os.X_OK):
        raise UserError(f"--output: {output} cannot be written; change its permissions, or give another folder")
    return found


def names_shown(named: Sequence[Named], audio: Sequence[str], output: Path | None) -> bool:
    """Whether lines of text begin with the recording's name: not in files, and not for the one that was asked for."""
    return output is None and (len(named) > 1 or list(audio) != [named[0].name])


def process(
    named: Sequence[Named],
    recogniser: Any,
    batch_seconds: float,
    written: Callable[[Named, Any], str],
    output: Path | None,
    suffix: str,
) -> int:
    """Run ``recogniser`` over the recordings and write each result when it is there; returns the exit code.

    ``written``: the text of a result or error; an empty one is not written. It goes to a file of ``output`` with the
    ``suffix``, or to standard output.
    """
    from lowrank_speech.inference.running import run

    failed, done = 0, 0
    try:
        with contextlib.ExitStack() as stack, _Progress(len(named)) as progress:
            opened = [(one, partial(_open, one, stack)) for one in named]
            for outcome in run(opened, recogniser, batch_seconds, progress.within):
                one, result = outcome.key, outcome.result
                progress.close_inner()
                for note in getattr(result, "notes", ()):
                    progress.say(f"{one.name}: {note.removeprefix(f'{one.name}: ')}", sys.stderr)
                if isinstance(result, UserError):
                    failed += 1
                    progress.say(f"error: {result}", sys.stderr)
                _write(written(one, result), one, output, suffix, progress)
                done += 1
                progress.step()
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {done} of {len(named)} recordings are done", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if failed and len(named) > 1:
        typer.echo(f"{failed} of {len(named)} recordings have no result", err=True)
    return FAILED if failed else 0


def _open(one: Named, stack: contextlib.ExitStack) -> Any:
    from lowrank_speech.inference.sound import open_sound

    if one.problem is not None:
        raise UserError(one.problem)
    path = stack.enter_context(standard_input()) if one.path is None else one.path
    return open_sound(path, one.name)


def _write(text: str, one: Named, output: Path | None, suffix: str, progress: "_Progress") -> None:
    if not text:
        return
    if output is None:
        progress.say(text.removesuffix("\n"), sys.stdout)
        return
    from lowrank_speech.artefact import write_text

    path = output / one.stem.with_name(one.stem.name + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


class _Progress:
    """Bars on standard error, if it is a terminal: recordings, and seconds of a long one."""

    def __init__(self, total: int):
        from tqdm import tqdm

        self._tqdm, self._inner = tqdm, None
        self._outer = tqdm(total=total, unit="recording", disable=None if total > 1 else True, file=sys.stderr)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close_inner()
        self._outer.close()

    def within(self, one: Named, done: float, total: float) -> None:
        """Show how far a long recording is, in seconds."""
        if self._inner is None:
            self._inner = self._tqdm(
                total=round(total), unit="s", desc=one.name[-40:], leave=False, disable=None, file=sys.stderr
            )
        self._inner.update(round(done) - self._inner.n)

    def step(self) -> None:
        """A recording is done."""
        self._outer.update()

    def say(self, text: str, file: Any) -> None:
        """Print ``text`` above the bars, at once."""
        self._tqdm.write(text, file=file)
        file.flush()

    def close_inner(self) -> None:
        """Remove the bar of a long recording."""
        if self._inner is not None:
            self._inner.close()
            self._inner = None
