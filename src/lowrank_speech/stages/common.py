"""What all stage programs share: command line, config, logging, manifest, and errors for people.

A stage is ``python -m lowrank_speech.stages.<stage> --cfg JSON --some-input PATH ... --manifest PATH``. Its module has
a settings class ``Config``, ``add(parser)``, which declares inputs and outputs, and ``body(run)``, which works:

    def body(run: common.Run) -> None:
        cuts = common.existing(run.arguments.cuts, "--cuts")
        ...
        run.finish([run.arguments.out], metrics={"utterances": 7})

``--cfg`` holds exactly the keys that the stage uses, ``--runtime`` those that cannot change its result; both are JSON,
or @FILE. Exit codes: 0 done, 2 an error that a person can fix (one line in the log), 75 stopped and able to continue,
130 interrupted.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import Manifest, write_table
from lowrank_speech.errors import STOPPED, Stopped, UserError
from lowrank_speech.process import end_with_parent, locked
from lowrank_speech.quiet import quiet
from lowrank_speech.settings import read, resolved, settings

log = logging.getLogger("lowrank_speech")

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
SET_ASIDE = ("id", "reason", "detail")
ATTEMPT = "===="
"""The start of the first line that a run writes to its log. The log of a training may hold several runs."""
NOISY = ("matplotlib", "urllib3", "filelock", "transformers", "peft")


@settings
class NoRuntime:
    """A stage that takes no runtime keys."""


@dataclass
class Run:
    """One run of a stage: its command line, settings, and the manifest that it writes at its end."""

    stage: str
    arguments: argparse.Namespace
    given: dict[str, Any]
    """The slice as it was given."""
    config: Any
    """The slice, an instance of the stage's ``Config``."""
    runtime: Any
    """How to run, an instance of the stage's ``Runtime`` (``NoRuntime`` where it has none)."""
    cfg: dict[str, Any] = field(init=False)
    """The slice as JSON, with every default written out."""
    code: str = field(init=False)
    """Hash of the code that runs."""
    device: str = "cpu"
    """Where the stage computed, for the manifest."""

    def __post_init__(self) -> None:
        self.cfg = resolved(self.config)
        self.code = self.arguments.code or own_code(self.stage)
        self._manifest = Manifest(self.stage, self.cfg, self.cfg.get("seed"), code=self.code, given=self.given)

    def write_set_aside(self, path: Path, rows: Iterable[Sequence[Any]], header: Sequence[str] = SET_ASIDE) -> Path:
        """Write the list of items that were set aside, and log the count for each reason."""
        listed = list(rows)
        write_table(path, header, listed)
        if listed:
            reasons = Counter(row[list(header).index("reason")] for row in listed)
            said = ", ".join(f"{n} x {reason}" for reason, n in sorted(reasons.items()))
            log.warning("%s: set aside: %s; see %s", self.stage, said, path)
        return path

    def finish(
        self,
        outputs: Iterable[str | Path],
        metrics: Mapping[str, Any] | None = None,
        cost: Mapping[str, Any] | None = None,
        sources: Mapping[str, str | Path] | None = None,
        peak_bytes: int | None = None,
    ) -> None:
        """Write the manifest (see ``artefact.Manifest.write``); a stage calls this last."""
        self._manifest.device, self._manifest.cfg = self.device, self.cfg
        self._manifest.write(self.arguments.manifest, outputs, metrics, cost, sources, peak_bytes)


def own_code(stage: str) -> str:
    """The hash of the stage's code, for runs by hand. Rules pass the narrower hash of their job."""
    from lowrank_speech.fingerprints import code_hash

    return code_hash(f"lowrank_speech.stages.{stage}")


def parser(stage: str, doc: str | None, config: type, runtime: type = NoRuntime) -> argparse.ArgumentParser:
    """The command line of a stage: its module docstring, the options of all stages, and in the help the keys of
    ``config`` and ``runtime``."""
    result = _Parser(
        prog=f"python -m lowrank_speech.stages.{stage}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.sections = (config, runtime)
    result.add_argument("--cfg", required=True, metavar="JSON", help="the stage's settings as JSON, or @FILE")
    result.add_argument("--runtime", default="{}", metavar="JSON", help="settings that change no result, or @FILE")
    result.add_argument("--code", metavar="HASH", help="hash of the code, for the manifest; default: computed")
    result.add_argument(
        "--manifest", required=True, type=Path, help="output: the manifest; its cost file goes here too"
    )
    result.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING"], help="default: INFO")
    return result


class _Parser(argparse.ArgumentParser):
    """Describes the keys of the stage's settings, but only when help is requested."""

    sections: tuple[type, ...] = ()

    def format_help(self) -> str:
        from lowrank_speech.stages.keys import help_text

        self.epilog = help_text(*self.sections)
        return super().format_help()


def read_cfg(text: str, option: str = "--cfg") -> dict[str, Any]:
    """Parse ``--cfg`` or its like: JSON text, or ``@path`` of a JSON file."""
    source = option
    if text.startswith("@"):
        source = text[1:]
        if not Path(source).is_file():
            raise UserError(f"{option}: the file {source} does not exist")
        text = Path(source).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source} is not valid JSON: {error}") from error


def existing(path: str | Path, what: str) -> Path:
    """Return ``path``. UserError: it does not exist; ``what`` names it in the message."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{what}: {path} does not exist")
    return path


def run_stage(body: Callable[[], None], log_level: str) -> int:
    """Run ``body()`` with logging to stderr; returns the exit code."""
    # If several processes work (torchrun sets RANK), only the first one reports.
    level = log_level if os.environ.get("RANK", "0") == "0" else "WARNING"
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s", force=True)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    quiet()
    end_with_parent()
    try:
        body()
    except UserError as error:
        log.error("%s", error)
        log.debug("traceback:", exc_info=True)
        return 2
    except Stopped as stop:
        log.info("%s", stop)
        return STOPPED
    except KeyboardInterrupt:
        log.error("interrupted")
        return 130
    except Exception as error:
        said = " ".join(str(error).split())
        if _no_room(error):
            log.error("the disk is full: %s; free some space and run again", said)
        elif isinstance(error, OSError) and error.errno in REFUSED:
            log.error("no access: %s; change the permissions, or give another path", said)
        else:
            raise
        log.debug("traceback:", exc_info=True)
        return 2
    return 0


def _no_room(error: BaseException) -> bool:
    """Whether ``error`` comes from a full disk, a quota or a limit on the size of files."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in full
    # safetensors raises its own, with the number in the text.
    return type(error).__name__ == "SafetensorError" and any(f"os error {number})" in str(error) for number in full)


def main(
    stage: str,
    doc: str | None,
    config: type,
    add: Callable[[argparse.ArgumentParser], None],
    body: Callable[[Run], None],
    argv: Sequence[str] | None = None,
    runtime: type = NoRuntime,
) -> int:
    """A stage's whole ``main``; returns the exit code.

    ``config`` and ``runtime``: the settings classes that read ``--cfg`` and ``--runtime``.
    """
    command = parser(stage, doc, config, runtime)
    add(command)
    arguments = command.parse_args(argv)

    def work() -> None:
        given = read_cfg(arguments.cfg)
        how = read(runtime, read_cfg(arguments.runtime, "--runtime"), "runtime")
        run = Run(stage, arguments, given, read(config, given), how)
        log.info("%s stage %s, code %s", ATTEMPT, stage, run.code[:12])
        with _alone(arguments.manifest):
            body(run)

    return run_stage(work, arguments.log_level)


def _alone(manifest: Path) -> contextlib.AbstractContextManager[None]:
    """Lock the artefact of ``manifest``. If several processes share a job, only the first one takes the lock."""
    if os.environ.get("RANK", "0") != "0":
        return contextlib.nullcontext()
    return locked(manifest.with_name(f".{manifest.name}.lock"))
