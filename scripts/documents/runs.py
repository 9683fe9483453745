"""The commands that the documents show, each run once, in a folder of their own."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lora_mnist.project import PROJECT

#: As the documents print them. Folders are named here, so that printed paths stay the same.
COMMANDS = {
    "pretrain": ["stage=pretrain"],
    "nines": ["stage=lora", "digit=9", "trainer.max_steps=100"],
    "repair": ["experiment=repair", "digit=9"],
    "sweep": ["-m", "stage=lora", "digit=9", "lora.rank=1,2,4,8", "lora.alpha=1,4,8"],
}


class Runs:
    """Runs in ``folder``; those that it holds from an earlier call are not run again.

    Args:
        folder: where they go; what they print names neither it nor the project's folder.
        settings: overrides of all, to try the scripts on something small.
    """

    def __init__(self, folder: Path, settings: Sequence[str] = ()) -> None:
        self.folder = folder.absolute()
        self.settings = list(settings)

    @property
    def outputs(self) -> Path:
        """Where the runs' folders are."""
        return self.folder / "outputs"

    def run_folder(self, name: str) -> Path:
        """The folder that a command leaves.

        Raises:
            RuntimeError: if the command fails.
        """
        self.printed(name)
        return self._run_folder(name)

    def printed(self, name: str) -> str:
        """What a command prints.

        Raises:
            RuntimeError: if it fails.
        """
        kept = self.folder / f"{name}.txt"
        if kept.exists():
            return kept.read_text()
        if name != "pretrain":
            self.printed("pretrain")
        mode = "sweep" if "-m" in COMMANDS[name] else "run"
        overrides = [f"paths.outputs={self.outputs}", f"hydra.{mode}.dir={self._run_folder(name)}"]
        command = [*COMMANDS[name], *self.settings, *overrides]
        print(f"python train.py {' '.join(command)}", file=sys.stderr, flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, str(PROJECT / "train.py"), *command],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"python train.py {' '.join(command)}\n{done.stdout}")
        text = done.stdout
        for ours in (f" paths.outputs={self.outputs}", f"{self.folder}/", f"{PROJECT}/"):
            text = text.replace(ours, "")
        kept.write_text(text)
        return text

    def _run_folder(self, name: str) -> Path:
        stage = {"pretrain": "pretrain", "sweep": "multirun"}.get(name, "lora")
        return self.outputs / stage / name
