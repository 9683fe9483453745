"""Drawing a run again, from the files in its folder."""

from pathlib import Path

from omegaconf import DictConfig

from lora_mnist.disk.files import read_json
from lora_mnist.disk.run_paths import RESULTS_FILE, latest
from lora_mnist.errors import UserError, one_line
from lora_mnist.project import Run
from lora_mnist.show.report import make_report


def report(cfg: DictConfig, run: Run | None = None) -> Path:
    """Draw the figures and the report of the run that ``cfg.run`` names.

    Args:
        cfg: a configuration of ``configs/report.yaml``; it is not changed.
        run: not used, since the report stands in the folder of the run.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: if there is no such run, or its folder cannot be read or written.
    """
    folder = Path(str(cfg.run))
    if cfg.run == "latest":
        newest = latest(Path(cfg.paths.outputs), "*/*/*.json")
        if newest is None:
            raise UserError(f"run=latest: expected a run in {cfg.paths.outputs}, found none")
        folder = newest.parent
    if not (folder / RESULTS_FILE).is_file():
        raise UserError(
            f"run={cfg.run}: expected the folder of a run, with {RESULTS_FILE} in it, or latest"
        )
    try:
        make_report(folder, read_json(folder / RESULTS_FILE))
    except KeyError as error:
        raise UserError(
            f"run={folder}: {RESULTS_FILE} has no {error}; expected a run of this version"
        ) from error
    except (ValueError, OSError) as error:
        raise UserError(f"run={folder}: {one_line(error)}") from error
    path = folder / "report.html"
    print(f"report: {path}")
    return path
