"""Where the project is: the folder of ``train.py``, ``configs/``, ``data/`` and ``outputs/``."""

from pathlib import Path

from omegaconf import OmegaConf


def _find_project() -> Path:
    # An editable install, which the README asks for, runs from the checkout itself.
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "configs").is_dir() else Path.cwd()


#: Commands may be started in any folder; data and outputs belong to this one.
PROJECT = _find_project()

OmegaConf.register_new_resolver("lora_mnist.project", lambda: str(PROJECT), replace=True)
