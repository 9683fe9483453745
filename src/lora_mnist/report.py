"""Drawing a run or a sweep again, from the files in its folder."""

from pathlib import Path

from omegaconf import DictConfig

from lora_mnist.disk.run_folder import RESULTS_FILE, latest
from lora_mnist.errors import UserError, one_line
from lora_mnist.project import Run
from lora_mnist.show.report import make_report, make_sweep_report

#: A run's folder has the first, a sweep's the second.
_FILES = (RESULTS_FILE, "sweep.json")


def report(cfg: DictConfig, run: Run | None = None) -> Path:
    """Draw the figures and the report of the run, or the sweep, that ``cfg.run`` names.

    Args:
        cfg: a configuration of ``configs/report.yaml``; it is not changed.
        run: not used, since the report stands in the folder of the run.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: if there is no such run, or its folder cannot be read or written.
    """
    folder = find_run(cfg.run, Path(cfg.paths.outputs))
    lines: list[str] = []
    try:
        if (folder / "sweep.json").is_file():
            lines = make_sweep_report(folder)
        else:
            make_report(folder)
    except (ValueError, OSError) as error:
        raise UserError(f"run={cfg.run}: {one_line(error)}") from error
    path = folder / "report.html"
    print(*lines, f"report: {path}", sep="\n")
    return path


def find_run(run: object, outputs: Path) -> Path:
    """The folder that ``run`` names: a run's, a sweep's, or that of the ``latest`` of either."""
    folder = Path(str(run))
    if run == "latest":
        newest = latest(outputs, "*/*/*.json")
        if newest is None:
            raise UserError(f"run=latest: expected a run in {outputs}, found none")
        folder = newest.parent
    if not any((folder / name).is_file() for name in _FILES):
        raise UserError(
            f"run={run}: expected the folder of a run, with {RESULTS_FILE} in it, or of a sweep, "
            "or latest"
        )
    return folder
