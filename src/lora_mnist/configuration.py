"""What a command's configuration says: the keys that it may have, and the classifier it names."""

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lora_mnist.disk.record import TRAINING_KEYS
from lora_mnist.disk.run_paths import ADAPTER_FOLDER, latest
from lora_mnist.errors import UserError
from lora_mnist.project import program
from lora_mnist.run import Run

if TYPE_CHECKING:
    from lora_mnist.classifier import Classifier

_ALL = "stage paths data net base_name base_ckpt"
_ADAPTER = "adapter allow_other_base trust base_prefix"
_RUN = "trainer logger sweep figures"
_TRAIN = "loss optimizer scheduler callbacks run_name digit target seed debug compile resume"
#: The keys that each stage reads. Those in a group, such as ``data``, are arguments of what its
#: ``_target_`` names, which refuses what it does not take.
_KEYS = {
    "pretrain": f"{_ALL} {_RUN} {_TRAIN}",
    "lora": f"{_ALL} {_RUN} {_TRAIN} lora dial refit trust base_prefix",
    "eval": f"{_ALL} {_ADAPTER} {_RUN} scale",
    "predict": f"{_ALL} {_ADAPTER} scale images out",
    "export": f"{_ALL} {_ADAPTER} scale out",
    "demo": f"{_ALL} {_ADAPTER} server",
}
#: Keys that are true or false; some of them may be null.
_SWITCHES = ("figures", "compile", "dial", "trust", "allow_other_base")


def checked_copy(cfg: DictConfig, run: Run | None = None) -> DictConfig:
    """A copy of ``cfg`` with the keys that its stage reads.

    Other keys that nobody has typed come from a file of the user's, ``classifier/NAME.yaml`` or
    ``configs/local/default.yaml``, of which each command takes what it has. ``cfg.paths.run``
    becomes the run's folder, for callbacks and loggers.

    Raises:
        UserError: if another key was typed, a file has one that no command reads or a name in place
            of a group's keys, or a switch is neither on nor off.
    """
    checked = cfg.copy()
    typed = None
    if run is not None and run.typed is not None:
        typed = {key.partition(".")[0] for key in run.typed_keys}
    known = " ".join(_KEYS.values()).split()
    for key in map(str, cfg):
        if key not in _KEYS[cfg.stage].split():
            if typed is None or key in typed or key not in known:
                message = f"{key}: nothing reads this key with stage={cfg.stage}"
                if key not in known and (nearest := get_close_matches(key, known, n=1)):
                    message += f"; the nearest: {nearest[0]}"
                raise UserError(message)
            with open_dict(checked):
                del checked[key]
    for group in ("data", "net"):
        if isinstance(cfg[group], str):
            raise UserError(
                f"{group}: {cfg[group]}: expected its keys; a file chooses a group by "
                f"'defaults: [override /{group}: {cfg[group]}]'"
            )
    for key in _SWITCHES:
        if checked.get(key) not in (True, False, None):
            raise UserError(f"{key}={checked[key]}: expected true or false")
    if run is not None:
        checked.paths.run = str(run.folder)
    return checked


def net_and_data(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """The arguments of network and images that a configuration has, resolved.

    ``MissingMandatoryValue`` of OmegaConf, if one has to be typed, and is not.
    """
    net: Any = OmegaConf.to_container(cfg.net, resolve=True, throw_on_missing=True)
    data: Any = OmegaConf.to_container(cfg.data, resolve=True, throw_on_missing=True)
    return {"net": net, "data": {k: v for k, v in data.items() if k not in TRAINING_KEYS}}


def classifier_of(cfg: DictConfig, run: Run | None = None) -> "Classifier":
    """The classifier that a configuration names: its base, and its adapter as it was saved.

    Raises:
        UserError: see :meth:`.Classifier.load`; and for ``adapter=latest`` without an adapter, or
            in a sweep, whose jobs could find different ones.
    """
    from lora_mnist.classifier import Classifier  # here: torch

    adapter = cfg.get("adapter")
    if adapter == "latest":
        folder = Path(cfg.paths.outputs, "lora")
        newest = latest(folder, f"*/{ADAPTER_FOLDER}/adapter_config.json")
        if newest is None:
            raise UserError(
                f"adapter=latest: expected an adapter in {folder}, found none; make one with: "
                f"{program('train')} stage=lora and the same data and net"
            )
        adapter = newest.parent
        if run is not None and run.is_sweep:
            raise UserError(
                "adapter=latest: expected the folder itself in a sweep, whose jobs could find "
                f"different ones: adapter={adapter}"
            )
    return Classifier.load(
        adapter,
        cfg.base_ckpt,
        **net_and_data(cfg),
        trust=cfg.trust,
        allow_other_base=cfg.get("allow_other_base", False),
        bases=cfg.paths.bases,
        base_prefix=cfg.base_prefix,
    )
