"""A command with sweeps that trains nothing: quick to run, and proof that sweeps know no task.

A job finds how near ``x`` and ``y`` are to 3 and 5.
"""

import os
import signal
import time

from hydra.core.config_store import ConfigStore

from lora_mnist.cli.main import run_by_hydra
from lora_mnist.errors import UserError
from lora_mnist.files import write_json

CONFIG = {
    "defaults": [
        {"paths": "default"},
        {"sweep": "default"},
        {"hydra": "default"},
        "_self_",
        {"shape": "round"},
        {"launcher": None},
    ],
    "stage": "toy",
    "sweep": {"metric": "val.accuracy"},
    "seed": 0,
    "x": 1,
    "y": 1,
    "note": None,
    "pause": 0,
}


class Interrupting:
    """Sends SIGINT when it is thrown away, which only the garbage collector does."""

    def __init__(self):
        self.itself = self

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


STORE = ConfigStore.instance()
STORE.store("toy", CONFIG)
#: For a command without sweeps of its own.
PLAIN = {**CONFIG, "defaults": [group for group in CONFIG["defaults"] if "sweep" not in group]}
del PLAIN["sweep"]
STORE.store("plain", PLAIN)
for name in ("round", "square"):
    STORE.store(name, {"kind": name}, group="shape")


def play(cfg, run):
    folder = run.folder
    if cfg.x == 0:
        raise UserError("x=0: expected an integer >= 1")
    if cfg.x == -1:
        raise RuntimeError("no such thing")
    if cfg.x == -2:
        raise KeyboardInterrupt
    if cfg.x == -3:
        Interrupting()
    if cfg.x == -4:
        raise BrokenPipeError("of a logger's server")
    (folder / "half-done").touch()
    time.sleep(cfg.pause)
    missed = abs(cfg.x - 3) + abs(cfg.y - 5) + cfg.seed
    results = {
        "stage": cfg.stage,
        "overrides": list(run.overrides_without("hydra", "launcher", "sweep")),
        "val": {"accuracy": 1 / (1 + missed), "errors": missed},
        "test": {"loss": 0.5},
        "worker": {"process": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")},
    }
    if cfg.x == 4:  # no images to validate on
        del results["val"]
    write_json(folder / "results.json", results)


if __name__ == "__main__":
    run_by_hydra(play, "toy")
