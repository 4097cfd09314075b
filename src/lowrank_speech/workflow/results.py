"""Print the end of a run: the table of the experiment, or the errors that stopped it.

In: the experiment's config and, below its ``output``, report/results.txt (stage report) and logs/. Out: text on stdout.

    python -m lowrank_speech.workflow.results config.yaml
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lowrank_speech import yaml_files
from lowrank_speech.workflow.config import deep_merge
from lowrank_speech.workflow.paths import Layout

PROJECT = Path(__file__).resolve().parents[3]
_ERROR = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ ERROR (.*)")
_ATTEMPT = re.compile(r" INFO ==== ")  # stages.common
TAIL = 1 << 20  # bytes at the end of a log in which its last error is looked for


def main(argv: Sequence[str] | None = None) -> int:
    """Print table and path; returns the exit code."""
    sys.stdout.write(table(layout_of((sys.argv[1:] if argv is None else argv)[0])))
    return 0


def layout_of(config: str | Path) -> Layout:
    """The folders of the experiment in a config file, which overrides the default config as in the Snakefile."""
    found = yaml_files.load(config)
    if "corpora" not in found:
        found = deep_merge(yaml_files.load(PROJECT / "config.yaml"), found)
    return Layout(found["output"].rstrip("/"))


def table(layout: Layout, since: float = 0.0) -> str:
    """The results table and the path of the page; empty if no report was written after ``since`` (see ``errors``)."""
    folder = Path(layout.report())
    text = folder / "results.txt"
    if not text.is_file() or text.stat().st_mtime < since:
        return ""
    return f"\n{text.read_text(encoding='utf-8').rstrip()}\n\n{folder / 'report.html'}\n"


def errors(layout: Layout, since: float) -> list[str]:
    """One line per log that was written after ``since`` (Unix time) and ends with an error."""
    found: dict[str, str] = {}
    for path in sorted(Path(layout.root, "logs").rglob("*.log")):
        if path.stat().st_mtime >= since and (said := _last_error(path)):
            found.setdefault(said, str(path))
    return [f"error: {said} (log: {path})" for said, path in found.items()]


def _last_error(path: Path) -> str | None:
    """The error that ended the last attempt in a log: the stage's own, or the last line of a traceback; else None."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    headers = [number for number, line in enumerate(lines) if _ATTEMPT.search(line)]
    attempt = [line for line in lines[headers[-1] if headers else 0 :] if line.strip()]
    for line in reversed(attempt):
        if match := _ERROR.fullmatch(line):
            return match[1]
    return attempt[-1] if any(line.startswith("Traceback (most recent") for line in attempt) else None


if __name__ == "__main__":
    raise SystemExit(main())
