"""Generates two files from the settings classes of all parts.

    python -m lowrank_speech.experiment            writes the schema and the reference of all keys
    python -m lowrank_speech.experiment --check    fails if they are out of date

Outputs: ``workflow/schemas/config.schema.json``, from which the workflow checks configs and fills in defaults without
importing any part, and ``docs/configuration.md``. Both are committed; a test compares them with the classes.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lowrank_speech.experiment.reference import text
from lowrank_speech.experiment.schema import FILE, schema

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the schema and the reference, or with --check compare them; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    found = schema()
    made = {FILE: json.dumps(found, indent=1, ensure_ascii=False) + "\n", REFERENCE: text(found)}
    stale = [p for p, content in made.items() if not p.is_file() or p.read_text(encoding="utf-8") != content]
    if "--check" in arguments:
        for path in stale:
            sys.stderr.write(f"{path} is out of date: run python -m lowrank_speech.experiment\n")
        return 1 if stale else 0
    for path in stale:
        path.write_text(made[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
