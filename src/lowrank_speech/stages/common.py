"""What all stage programs share: the config slice, the command line, logging, and errors for people.

A stage is ``python -m lowrank_speech.stages.<stage> --cfg JSON --some-input PATH ... --manifest PATH``.
``--cfg`` is the canonical JSON of exactly the keys that the stage uses (or ``@file``); the stage's frozen dataclass
reads it, and unknown keys end the run.
"""

import argparse
import dataclasses
import errno
import json
import logging
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lowrank_speech.errors import STOPPED, Stopped, UserError
from lowrank_speech.quiet import quiet
from lowrank_speech.stages.keys import help_text

log = logging.getLogger("lowrank_speech")

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def from_json(cls: type, value: Any, where: str = "cfg") -> Any:
    """Build the frozen dataclass ``cls`` from parsed JSON; unknown, missing or ill-typed keys raise UserError.

    Fields may be bool, int, float, str, ``X | None``, ``tuple[X, ...]``, ``dict[str, X]``, Literal, or another
    dataclass. ``where`` is the path of the value in the config, for the message.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a mapping with keys, got {value!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(fields))}")
    no_default = dataclasses.MISSING
    missing = [
        n for n, f in fields.items() if n not in value and f.default is no_default and f.default_factory is no_default
    ]
    if missing:
        raise UserError(f"{where}: the key {missing[0]!r} is missing")
    try:
        return cls(**{name: _convert(hints[name], v, f"{where}.{name}") for name, v in value.items()})
    except ValueError as error:  # __post_init__ of the dataclass checks ranges
        raise UserError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert_union([a for a in args if a is not type(None)], value, where)
    if origin is typing.Literal:
        if value not in args:
            raise UserError(f"{where}: {value!r} is none of {', '.join(map(repr, args))}")
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    expected = {tuple: "a list", dict: "a mapping"}.get(origin, getattr(hint, "__name__", str(hint)))
    raise UserError(f"{where}: expected {expected}, got {value!r}")


def _convert_union(hints: list[Any], value: Any, where: str) -> Any:
    for hint in hints[:-1]:
        try:
            return _convert(hint, value, where)
        except UserError:
            continue
    return _convert(hints[-1], value, where)


def parser(stage: str, doc: str | None, config: type) -> argparse.ArgumentParser:
    """Command line of a stage: its module docstring as description, ``--cfg``, ``--manifest``, ``--log-level``, and at
    the end the keys of the dataclass ``config``, which reads the slice."""
    result = argparse.ArgumentParser(
        prog=f"python -m lowrank_speech.stages.{stage}",
        description=doc,
        epilog=help_text(config),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--cfg", required=True, metavar="JSON", help="the stage's config slice as JSON, or @FILE")
    result.add_argument("--manifest", required=True, type=Path, help="output: what was made, its hashes and its cost")
    result.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING"], help="default: INFO")
    return result


def add_training(parser: argparse.ArgumentParser) -> None:
    """The options of stages that train, beside inputs and outputs."""
    parser.add_argument("--runtime", metavar="JSON", help="keys that change no result: device, workers, ...; or @FILE")
    parser.add_argument("--code", metavar="HASH", help="hash of the code; a state of other code is not continued")


def read_cfg(text: str) -> dict[str, Any]:
    """Parse ``--cfg``: JSON text, or ``@path`` of a JSON file."""
    source = "--cfg"
    if text.startswith("@"):
        source = text[1:]
        if not Path(source).is_file():
            raise UserError(f"--cfg: no file {source}")
        text = Path(source).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: no valid JSON: {error}") from error


def existing(path: str | Path, what: str) -> Path:
    """``path`` if it exists, else UserError that says what was looked for."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{what}: {path} does not exist")
    return path


def token_files(lang: Path) -> list[Path]:
    """What a folder of the stage lang holds, without its manifest, which notes the time that it took."""
    return sorted(path for path in lang.iterdir() if path.name != "lang.json")


def run_stage(body: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Run ``body(arguments)`` with logging to stderr; returns the exit code.

    0 when all is done, 2 after a UserError, 75 (``STOPPED``) when the stage was asked to stop and can go on, 130 after
    Ctrl-C elsewhere.
    """
    quiet()
    # Of several processes (torchrun sets RANK) the first one reports.
    level = arguments.log_level if os.environ.get("RANK", "0") == "0" else "WARNING"
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s", force=True)
    for noisy in ("matplotlib", "urllib3", "filelock", "transformers", "peft"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        body(arguments)
    except UserError as error:
        log.error("%s", error)
        log.debug("where it came from", exc_info=True)
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
            log.error("no room to write: %s; make room there and run again", said)
        elif isinstance(error, OSError) and error.errno in REFUSED:
            log.error("no access: %s; change its rights, or name another path", said)
        else:
            raise
        log.debug("where it came from", exc_info=True)
        return 2
    return 0


def _no_room(error: BaseException) -> bool:
    """Whether a disk, a quota or a limit on files is what ``error`` is about."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in full
    # safetensors raises its own, with the number in the text.
    return type(error).__name__ == "SafetensorError" and any(f"os error {number})" in str(error) for number in full)


def main(
    stage: str, doc: str | None, config: type, add: Callable, body: Callable, argv: Sequence[str] | None = None
) -> int:
    """A stage's whole ``main``: ``add(parser)`` declares inputs and outputs, ``body(arguments)`` works.

    ``config``: the dataclass that reads the stage's slice.
    """
    command = parser(stage, doc, config)
    add(command)
    return run_stage(body, command.parse_args(argv))
