"""The project's promises, tried hard, with a table at the end.

    python scripts/torture/run.py                # everything: three quarters of an hour on one core
    python scripts/torture/run.py --quick        # a few cases of each: five minutes
    python scripts/torture/run.py --only kills   # one of kills, faults, together, fuzz, leaks

What was lost is told on standard error as it is found; the table, as Markdown, is printed on
standard output. The exit code is 1 if anything was lost. The same seed tries the same.
"""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from torture.report import Row, markdown, tell
from torture.small import workplace

KINDS = ("kills", "faults", "together", "fuzz", "leaks")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=KINDS, help="one kind alone")
    parser.add_argument("--quick", action="store_true", help="a few cases of each")
    parser.add_argument("--seed", type=int, default=0, help="of what is tried")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for kind in [arguments.only] if arguments.only else KINDS:
        tell(f"{kind} ...")
        torture: Callable[[Path, int, bool], list[Row]]
        torture = getattr(import_module(f"torture.{kind}"), kind)
        with workplace() as place:
            rows += torture(place, arguments.seed, arguments.quick)
    print(markdown(rows))
    return int(any(row.lost for row in rows))


if __name__ == "__main__":
    sys.exit(main())
