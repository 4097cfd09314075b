"""Shows the table of an experiment and says where its report is; what ``make run`` ends with.

In: the experiment's config and, below its ``output``, report/results.txt (stage report). Out: text on stdout; nothing
where the report does not exist yet (after a dry run, say).

    python -m lowrank_speech.workflow.results config.yaml
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lowrank_speech.workflow.config import deep_merge
from lowrank_speech.workflow.paths import Layout


def main(argv: Sequence[str] | None = None) -> int:
    """Print table and path; returns the exit code."""
    config = _load((sys.argv[1:] if argv is None else argv)[0])
    if "corpora" not in config:  # as in the Snakefile: it is laid over the default
        config = deep_merge(_load("config.yaml"), config)
    folder = Path(Layout(config["output"].rstrip("/")).report())
    table = folder / "results.txt"
    if table.is_file():
        sys.stdout.write(f"\n{table.read_text(encoding='utf-8').rstrip()}\n\n{folder / 'report.html'}\n")
    return 0


def _load(path: str) -> dict[str, Any]:
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
