"""``report.html`` of a sweep: its jobs in a table that sorts, beside their base, and its picture.

Made from what the jobs left; the jobs' own reports are made one by one, with ``report.py``. Imports
no torch, and matplotlib only to draw.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from lora_mnist.disk.files import atomic_write
from lora_mnist.show import document
from lora_mnist.show.verdict import verdict_text
from lora_mnist.sweep.command import Ranking, command_line, read_ranking
from lora_mnist.sweep.folder import SWEEP_FILE, read_commands
from lora_mnist.sweep.records import Row, natural, read_results, read_rows, read_yaml
from lora_mnist.sweep.summary import best_or_none, shown_columns, start_value

log = logging.getLogger("lora_mnist.report")

REPORT_FILE = "report.html"

#: Rows of the table; summary.csv has them all.
_MOST_ROWS = 1000


class SweepReport(Callback):
    """Hydra callback: makes the report of a sweep that has come to its end."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            if read_rows(folder):
                make_sweep_report(folder)
        except Exception as error:  # a drawing is no reason to fail a sweep
            log.warning("%s: the report was not drawn (%s)", folder, error)


def is_sweep(folder: Path) -> bool:
    """Whether ``folder`` is that of a sweep."""
    return (folder / SWEEP_FILE).is_file()


def make_sweep_report(folder: Path) -> Path:
    """Write the report of the sweep in ``folder``; return its path.

    Raises:
        ValueError: if no job of a sweep is there.
        OSError: if a file cannot be read or written.
    """
    rows = read_rows(folder)
    if not rows:
        raise ValueError(f"{folder}: no job of a sweep")
    ranking = _ranking(folder)
    sign = -1 if ranking.mode == "max" else 1
    rows.sort(key=lambda row: [natural(value) for value in row.swept.values()])
    rows.sort(key=lambda row: _place(row, ranking.metric, sign))
    parts = list(_parts(folder, rows, ranking))
    with atomic_write(folder / REPORT_FILE) as path:
        path.write_text(
            document.document(f"sweep {folder.name}", parts, sorts=True), encoding="utf-8"
        )
    return folder / REPORT_FILE


def _ranking(folder: Path) -> Ranking:
    """How the sweep ranks its jobs, as the configuration that Hydra kept says."""
    try:
        config = OmegaConf.create(read_yaml(folder / "multirun.yaml"))
        return read_ranking(config) if isinstance(config, DictConfig) else Ranking()
    except Exception:  # an edited or older file: the jobs can be listed without
        return Ranking("val.accuracy")


def _place(row: Row, metric: str | None, sign: int) -> tuple[bool, float]:
    value = row.value(metric)
    return (row.status != "finished" or value is None), sign * (value or 0)


def _parts(folder: Path, rows: Sequence[Row], ranking: Ranking) -> Iterator[document.Html]:
    finished = [row for row in rows if row.status == "finished"]
    ranked = [row for row in finished if row.value(ranking.metric) is not None]
    yield f"<h1>{document.code_in(best_and_base(rows, ranking))}</h1>"
    if ranked:
        said = verdict_text(read_results(folder / ranked[0].folder) or {})
        yield f"<p>{document.code_in(said)}</p>"
        best = command_line("train.py", ranked[0].arguments)
        yield f"<p>The best job again:</p><pre>{document.text(best)}</pre>"
    yield document.facts([("jobs", len(rows)), ("finished", len(finished))])
    if ranked and ranked[0].swept:
        yield f"<h2>{document.text(ranking.metric)}</h2>"
        yield _picture(rows, ranking)
    yield "<h2>Jobs</h2><p class='faint'>A click on a title sorts.</p>"
    yield _table(rows, ranking)
    if len(rows) > _MOST_ROWS:
        yield f"<p>{len(rows) - _MOST_ROWS:,} more in summary.csv</p>"
    if commands := read_commands(folder):
        yield f"<h2>Commands</h2><pre>{document.text(chr(10).join(commands))}</pre>"
    yield f"<footer>Drawn from {document.text(folder)}; again with "
    yield f"<code>python report.py run={document.text(folder)}</code></footer>"


def best_and_base(rows: Sequence[Row], ranking: Ranking) -> str:
    """Which job is best, and whether it is better than the base that the jobs started from."""
    ranked = [row for row in rows if row.value(ranking.metric) is not None]
    if not ranked:
        return f"{len(rows):,} jobs"
    best = ranked[0]
    swept = " ".join(f"{key}={text}" for key, text in best.swept.items())
    found = f"{ranking.metric} {best.value(ranking.metric):.4f}"
    said = f"{best_or_none(best, ranking)}: {found}{' with ' if swept else ''}{swept}"
    start = start_value(best, ranking.metric, ranking.start)
    if ranking.start is None or start is None:
        return said
    return f"{said}; the {ranking.start.title} has {start:.4f}"


def _table(rows: Sequence[Row], ranking: Ranking) -> document.Html:
    columns = list(shown_columns(rows, ranking.metric, ranking.columns))
    titles = [column.title for column in columns]
    swept = list(rows[0].swept)
    shown = [
        [str(place), *row.swept.values(), *(_value(row, column.value) for column in columns)]
        if row.status == "finished"
        else [row.status, *row.swept.values(), *[""] * len(columns)]
        for place, row in enumerate(rows[:_MOST_ROWS], start=1)
    ]
    begun = [_whole(start_value(rows[0], c.value, ranking.start), c.value) for c in columns]
    name = ranking.start.title if ranking.start else ""
    foot = [name, *[""] * len(swept), *begun] if any(begun) else None
    return document.table(["", *swept, *titles], shown, foot=foot, sortable=True)


def _value(row: Row, key: str) -> Any:
    value = row.results.get(key, "")
    return f"{value:.1f}" if key.startswith("seconds.") and isinstance(value, float) else value


def _whole(value: Any, key: str) -> Any:
    """A count as a whole number, as the jobs have it; nothing for ``None``."""
    if value is None:
        return ""
    is_count = isinstance(value, float) and value.is_integer() and not key.endswith("accuracy")
    return int(value) if is_count else value


def _picture(rows: Sequence[Row], ranking: Ranking) -> document.Html:
    """The sweep's picture, a line, a heat map or slices, in the page's colours."""
    import matplotlib  # late

    from lora_mnist.show.canvas import INK, STYLE
    from lora_mnist.sweep.figure import draw_sweep

    points = [(row.swept, row.value(ranking.metric)) for row in rows]
    with (
        TemporaryDirectory() as folder,
        matplotlib.rc_context({**STYLE, "savefig.facecolor": "none"}),
    ):
        path = Path(folder) / "sweep.svg"
        draw_sweep(path, points, str(ranking.metric), ranking.mode)
        return document.drawing(path, f"{ranking.metric} over what was swept", INK)
