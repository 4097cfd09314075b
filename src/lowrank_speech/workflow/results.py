"""Print the end of a run: the table of the experiment, or the errors that stopped it.

In: the experiment's config and, below its ``output``, report/results.txt (stage report) and logs/. Out: text on stdout.

    python -m lowrank_speech.workflow.results config.yaml
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from lowrank_speech.workflow.experiments import merged
from lowrank_speech.workflow.logs import last_attempt
from lowrank_speech.workflow.paths import Layout


def main(argv: Sequence[str] | None = None) -> int:
    """Print table and path; returns the exit code."""
    sys.stdout.write(table(layout_of((sys.argv[1:] if argv is None else argv)[0])))
    return 0


def layout_of(config: str | Path) -> Layout:
    """The folders of the experiment in a config file, which overrides the default config as in the Snakefile."""
    return Layout(merged(config)["output"].rstrip("/"))


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
        if path.stat().st_mtime >= since and (said := _error(path)):
            found.setdefault(said, str(path))
    return [f"error: {said} (log: {path})" for said, path in found.items()]


def _error(path: Path) -> str | None:
    """The error that ended the last attempt in a log; else None."""
    attempt = last_attempt(path)
    return None if attempt is None else attempt.error


if __name__ == "__main__":
    raise SystemExit(main())
