"""Figures of a run, drawn from its folder into ``figures/``: each as PNG and as SVG.

They show what results.json, the saved answers and the adapter hold.
"""

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mnist.disk.files import atomic_write
from lora_mnist.disk.predictions import Answers, read_answers
from lora_mnist.show.canvas import STYLE
from lora_mnist.show.charts import draw_confusion, draw_errors, draw_singular_values
from lora_mnist.show.pictures import draw_gallery, draw_layer, pixel_layer
from lora_mnist.show.spectrum import Update, read_updates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Folder of the figures in a run's.
FIGURES = "figures"
#: All there may be, in the order in which to look at them.
NAMES = (
    *("errors", "repaired", "broken", "wrong", "confusion_difference", "confusion_adapted"),
    *("confusion_base", "layer", "singular_values"),
)

_DPI = 130


def draw_run(folder: Path, results: Mapping[str, Any]) -> list[str]:
    """Draw all figures of a run; return their names, in the order in which to look at them.

    Figures of an earlier drawing are replaced, or removed where there is nothing to draw.

    Args:
        folder: the run's folder.
        results: what its results.json holds.

    Raises:
        OSError: if a file cannot be written.
    """
    import matplotlib  # late: it takes half a second

    names = []
    with matplotlib.rc_context(STYLE):
        for name, figure in figures_of(results, read_answers(folder), _updates(folder, results)):
            _save(figure, folder / FIGURES, name)
            names.append(name)
    for path in (folder / FIGURES).glob("*.*g"):
        if path.suffix in (".png", ".svg") and path.stem not in names:
            path.unlink()
    return names


def _updates(folder: Path, results: Mapping[str, Any]) -> dict[str, Update]:
    return read_updates(folder / "adapter") if results.get("adapter") == "adapter" else {}


def figures_of(
    results: Mapping[str, Any], answers: Answers | None, updates: Mapping[str, Update]
) -> Iterator[tuple[str, "Figure"]]:
    """Each figure that there is something to draw for, by name."""
    classes = [str(name) for name in results["classes"]]
    yield "errors", draw_errors(results, classes)
    if answers is not None:
        for kind, gallery in answers.galleries.items():
            if gallery.total:
                yield kind, draw_gallery(kind, gallery, answers, classes)
        base = answers.confusion("base", len(classes))
        if answers.adapted is not None:
            adapted = answers.confusion("adapted", len(classes))
            title = "what the repair changed: images, adapted - base"
            yield (
                "confusion_difference",
                draw_confusion(adapted - base, title, classes, signed=True),
            )
            yield "confusion_adapted", draw_confusion(adapted, "adapted: images", classes)
        yield "confusion_base", draw_confusion(base, "base: images", classes)
        if pixels := pixel_layer(updates, answers):
            yield "layer", draw_layer(pixels, updates[pixels], answers)
    if updates:
        yield "singular_values", draw_singular_values(updates)


def _save(figure: "Figure", folder: Path, name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with atomic_write(folder / f"{name}.png") as path:
        figure.savefig(path, dpi=_DPI, facecolor="white")
    svg = BytesIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    with atomic_write(folder / f"{name}.svg") as path:
        path.write_bytes(svg.getvalue())
