"""Repair without forgetting: methods side by side, and the search that chose their settings.

    python scripts/studies/repair.py search    # what experiment=repair and repair.yaml rest on
    python scripts/studies/repair.py           # every method, 5 seeds, on the notebook's base
    python scripts/studies/repair.py --held-out --bases 1 2 3 4      # on the bases of the search
    python scripts/studies/repair.py --held-out --data fashion_mnist --digit weakest

The methods and the stages of the search are in repair.yaml; how the search judges is in
repair_search.py. Bases are pretrained where they are missing. Every method is a sweep
(python train.py -m) over bases and seeds, in a folder of outputs/repair_study; called again, the
study runs what is missing. ``--jobs 2`` runs two jobs at a time (extra ``sweep``).
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jobs import OUTPUT, Setting, Settings, overrides, pretrain, slug, sweep
from repair_search import Search, search
from repair_table import Table, columns, draw, markdown

from lora_mnist.files import atomic_write
from lora_mnist.project import PROJECT

_PLAN: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
METHODS: Mapping[str, Settings] = _PLAN["methods"]
SEARCHES: Mapping[str, Search] = {name: Search(**s) for name, s in _PLAN["searches"].items()}


def study(setting: Setting) -> None:
    """Run every method; write and print the table and the picture."""
    pretrain(setting)
    folder = OUTPUT / setting.name
    table: Table = {}
    for name, settings in METHODS.items():
        rows = sweep(setting, folder / slug(name), *overrides(settings))
        table.setdefault("base", columns(rows, "test_base"))
        table[name] = columns(rows, "test")
    text = markdown(table)
    with atomic_write(PROJECT / folder / "table.md") as path:
        path.write_text(text + "\n")
    draw(table, PROJECT / folder / "repair.png")
    print(f"{text}\n\n{folder / 'table.md'}\n{folder / 'repair.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="?", default="study", choices=("study", "search"))
    parser.add_argument("--held-out", action="store_true", help="bases without validation images")
    parser.add_argument("--bases", nargs="+", type=int, default=[0], help="pretraining seeds")
    parser.add_argument("--data", default="mnist", help="dataset: mnist, fashion_mnist, ...")
    parser.add_argument("--digit", default="9", help="class to repair, or weakest")
    parser.add_argument("--jobs", type=int, default=1, help="jobs at a time (extra sweep)")
    arguments = parser.parse_args()
    if arguments.what == "search":
        setting = Setting("mnist", "9", True, [1, 2, 3, 4], [0], arguments.jobs)
        search(setting, SEARCHES, METHODS)
        return
    study(
        Setting(
            data=arguments.data,
            digit=arguments.digit,
            held_out=arguments.held_out,
            bases=arguments.bases,
            seeds=[0, 1, 2, 3, 4],
            jobs=arguments.jobs,
        )
    )


if __name__ == "__main__":
    main()
