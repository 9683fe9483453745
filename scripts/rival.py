"""A yardstick: twenty lines of PyTorch beside a repair, on your own classifier and images.

    python scripts/rival.py --config-dir . classifier=photos target=weakest

It takes what the repair took, and reads the latest adapter (or adapter=FOLDER). Twenty lines are
those of docs/worth.md: five trainings with as many steps as the repair, and one more for the refit.
"""

import copy
import json
import logging
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "studies"))

from jobs import table
from omegaconf import DictConfig
from plain import refitted, twenty_lines
from tasks import Case, in_memory, logits_of
from torch import Tensor

from lora_mnist import lora_disabled, remove_lora
from lora_mnist.cli import run_entry
from lora_mnist.command import Run, classifier_of
from lora_mnist.errors import UserError, config_group

log = logging.getLogger(__name__)


def rival(cfg: DictConfig, run: Run) -> None:
    """Print the errors that a base, its repair, and twenty lines leave on the test images."""
    classifier = classifier_of(cfg)
    adapter, net, dataset = classifier.adapter, classifier.net, classifier.dataset
    if len(classifier.targets) != 1:
        repaired = ", ".join(classifier.targets) or "mistakes"
        raise UserError(f"adapter={adapter}: repairs {repaired}; expected one that repairs a class")
    (target,) = classifier.targets
    images, labels = {}, {}
    with config_group("data"):
        for part in ("train", "val", "test"):
            images[part], labels[part] = in_memory(dataset, getattr(dataset.sets, part))
    if not len(labels["val"]):
        raise UserError("data: expected validation images, which choose the rate of twenty lines")
    after = logits_of(net, images["test"])
    with lora_disabled(net):
        before = {part: logits_of(net, images[part]) for part in ("val", "test")}
    plain = remove_lora(copy.deepcopy(net)).requires_grad_()
    file, repair = Path(str(adapter)).parent / "results.json", {}  # of the run that left it
    if file.exists():
        repair = json.loads(file.read_text())
    steps, number = repair.get("steps", 400), classifier.classes.index(target)
    case = Case(plain, images, labels, before, number, steps)

    def row(name: str, logits: Tensor, seconds: str) -> list[str]:
        """Errors and false calls; a method's trainings in seconds."""
        called, right = logits.argmax(1), labels["test"]
        wrong, is_target = called != right, right == case.target
        counts = [wrong & is_target, wrong, wrong & (called == case.target)]
        return [name, *(f"{int(each.sum()):,}" for each in counts), seconds]

    taken = f"{repair['seconds']:.0f}" if repair else ""
    rows = [row("base", before["test"], ""), row("repair", after, taken)]
    log.info("twenty lines: 6 trainings of %d steps of all weights; each is told", steps)
    started = time.perf_counter()
    net, choice = twenty_lines(case, cfg.seed)
    for name in ("twenty lines", "twenty lines, refitted"):
        if "refitted" in name:
            net = refitted(case, choice, cfg.seed)
        taken = f"{time.perf_counter() - started:.0f}"
        rows.append(row(name, logits_of(net, images["test"]), taken))
    print(table(["method", f"errors on {target}", "in all", "false calls", "seconds"], rows))


if __name__ == "__main__":
    sys.argv[1:1] = ["stage=lora", "hydra=no_folder", "+adapter=latest"]
    run_entry(rival, "train")
