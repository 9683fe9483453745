"""What a repair is worth: methods side by side on bases that no search has seen.

    python scripts/studies/repair.py search    # what experiment=repair and repair.yaml rest on
    python scripts/studies/repair.py           # the tables of docs/repair.md, on test images

The methods, the bases and the stages of the search are in repair.yaml; how the search judges is in
repair_search.py; other networks and pictures are in tasks.py. Bases are pretrained where they are
missing. Every run has a folder of its own in outputs/repair_study; killed or called again, the
study does what is missing. ``--only NAME`` makes one table, or one search, alone.
"""

import argparse
import logging
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from jobs import PROJECT, Base, Settings
from repair_search import Case, Search, markdown_of_search, run_search
from repair_several import several
from repair_table import Rows, columns, fill, markdown, side_by_side
from tasks import PICTURES, weighted_fine_tuning

PAGE = PROJECT / "docs" / "repair.md"
PLAN: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
METHODS: Mapping[str, Settings] = PLAN["methods"]
TABLES: Mapping[str, Mapping[str, Any]] = PLAN["tables"]
SEARCHES: Mapping[str, Search] = {name: Search(**s) for name, s in PLAN["searches"].items()}


def bases(of: Mapping[str, Any]) -> list[Base]:
    """The bases of a table, or of the search."""
    return [Base(seed, of.get("common", {}), of.get("pretrain", {})) for seed in of["bases"]]


def cases(of: Mapping[str, Any]) -> list[Case]:
    """Each base with each class to repair, once."""
    found: list[Case] = []
    for base, digit in product(bases(of), of["digits"]):
        if (case := (base, base.target(digit))) not in found:
            found.append(case)
    return found


def compare(of: Mapping[str, Any]) -> Rows:
    """Run every method of a table."""
    rows: Rows = {}
    if pictures := of.get("pictures"):
        PICTURES[pictures]()
    for base, target in cases(of):
        before = base.results()
        base_row = {**columns(before, before, target), "trained weights": 0}
        rows.setdefault("base", []).append(base_row)
        for method, seeds in of["methods"].items():
            for seed in range(seeds):
                if weight := METHODS[method].get("weight"):
                    after = weighted_fine_tuning(base, target, weight, seed)
                else:
                    _, after = base.run(METHODS[method], target, seed)
                rows.setdefault(method, []).append(columns(after, before, target))
    return rows


def write(name: str) -> None:
    """Make a table and write it into the page."""
    of = TABLES[name]
    if name == "tasks":
        fill(PAGE, name, side_by_side({task: compare(part) for task, part in of.items()}))
        return
    if name == "several":
        rows = several(bases(of), METHODS[of["repair"]], METHODS[of["plain"]])
        fill(PAGE, name, markdown(rows))
        return
    fill(PAGE, name, markdown(compare(of)))


def search(name: str) -> None:
    """Search for a method's settings and write the candidates into the page."""
    candidates = run_search(cases(PLAN["search"]), SEARCHES[name])
    fill(PAGE, f"search {name}", markdown_of_search(candidates, SEARCHES[name], METHODS[name]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="?", default="tables", choices=("tables", "search"))
    parser.add_argument("--only", help="one table, or one search, by its name in repair.yaml")
    arguments = parser.parse_args()
    chosen: Mapping[str, Any] = SEARCHES if arguments.what == "search" else TABLES
    if arguments.only not in (None, *chosen):
        parser.error(f"--only={arguments.only}: expected one of {', '.join(chosen)}")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each run says the same
    for name in chosen if arguments.only is None else [arguments.only]:
        if arguments.what == "search":
            search(name)
        else:
            write(name)


if __name__ == "__main__":
    main()
