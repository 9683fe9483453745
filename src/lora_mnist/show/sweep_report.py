"""``report.html`` of a sweep, and its pictures."""

from lora_mnist.show.figures import draw_sweep, save_figure
from lora_mnist.show.report import write_page
from lora_mnist.sweep.summary import Summary, findings, points, table

#: Rows of the table of jobs; summary.csv has all.
_MAX_JOBS = 1000


def make_sweep_report(summary: Summary, command: str) -> list[str]:
    """Write ``summary.png`` and ``report.html`` of a sweep.

    ``command`` is the one that goes on with the sweep.
    """
    picture = ""
    if summary.best and summary.keys:
        metric = f"mean {summary.metric} over seeds" if summary.has_seeds else str(summary.metric)
        figure = draw_sweep(points(summary), metric)
        picture = save_figure(figure, summary.folder / "summary.png")
    titles, rows, base = table(summary, _MAX_JOBS)
    write_page(
        summary.folder / "report.html",
        "sweep.html.j2",
        summary=summary,
        findings=findings(summary),
        command=command,
        picture=picture,
        titles=titles,
        rows=rows,
        base=base,
    )
    return []
