"""What TensorBoard gets: all of it is decided here.

Scalars    ``train/loss``; of each validation accuracy, loss, errors on the classes to repair and
           elsewhere, repaired, broken, and the accuracy of each class, the base's as ``val_base/``;
           ``adapter/norm/<layer>``. A repair of ten classes has fewer than 60 tags.
Custom     the page that makes sense first: base and adapted on one chart.
Images     what is drawn into the run's folder; see :mod:`lora_mnist.show.figures`.
Histograms the singular values of what the adapter adds to each layer.
Text       the verdict, the errors of each class, the configuration.
HParams    what was swept first, then what runs often differ in, and how they ended.

Every other logger gets the scalars alone, those of the test class by class.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import OmegaConf
from torch import Tensor

from lora_mnist.show.figures import FIGURES, NAMES
from lora_mnist.show.hparams import hparams_of, write_hparams
from lora_mnist.show.spectrum import spectra
from lora_mnist.show.verdict import verdict_text

#: With more classes only those to repair have a curve of their own.
_MOST_CURVES = 16
#: With more layers the adapter's size is told as a whole.
_MOST_LAYERS = 8
_ALL_LAYERS = "all layers"

Outcome = Mapping[str, Any]

_LAYOUT = {
    "The repair": {
        "loss": ["train/loss", "val/loss"],
        "accuracy, base and adapted": ["val/accuracy", "val_base/accuracy"],
        "errors on what is to be repaired": ["val/errors_of_target", "val_base/errors_of_target"],
        "errors elsewhere": ["val/errors_elsewhere", "val_base/errors_elsewhere"],
        "repaired and broken": ["val/repaired", "val/broken"],
    }
}


class Curves(Callback):
    """Lightning callback: gives the loggers of a run what this module says."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay out the page, write down the configuration, and measure what training starts with."""
        if trainer.global_step:
            return  # an earlier run, which is gone on with, has done that
        names, targets = _classes(trainer)
        pages = layout(_curves(names, targets), list(_spectra(pl_module)))
        config = OmegaConf.to_yaml(OmegaConf.create(dict(pl_module.hparams)))
        for writer in writers(trainer):
            writer.add_custom_scalars(pages)
            # Four spaces: Markdown's code.
            writer.add_text("3 configuration", "\n".join(f"    {x}" for x in config.splitlines()))
        self._log_spectra(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        window, step = trainer.log_every_n_steps, trainer.global_step  # type: ignore[attr-defined]
        if trainer.loggers and window and step % window == 0:
            loss = trainer.callback_metrics.get("train/loss")
            _log(trainer, {} if loss is None else {"train/loss": float(loss)}, step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        outcomes: Any = pl_module.outcomes
        if trainer.sanity_checking or "val" not in outcomes:
            return
        names, targets = _classes(trainer)
        is_first = trainer.state.fn == TrainerFn.FITTING and (
            trainer.global_step * trainer.accumulate_grad_batches <= (trainer.val_check_batch or 0)
        )
        if is_first and "val_base" in outcomes:
            # An adapter starts as the base, and so does what fine-tunes it.
            start = {"val": outcomes["val_base"], "val_base": outcomes["val_base"]}
            begun = scalars("val", start, names, targets) | {"val/repaired": 0, "val/broken": 0}
            _log(trainer, begun, 0)
        _log(trainer, scalars("val", outcomes, names, targets), trainer.global_step)
        self._log_spectra(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell how the run ended. A test's point is no curve's: it stands behind their last step.

        A run that is gone on with drops what was logged behind the step where it does so.
        """
        outcomes: Any = pl_module.outcomes
        names, targets = _classes(trainer)
        ends = {s: outcomes[s] for s in ("val", "test") if s in outcomes}
        told = {s: scalars(s, ends, [], targets) for s in ends}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_metrics(told["test"], trainer.global_step + 1)
            else:  # a file, where nothing is crowded
                everything = scalars("test", outcomes, names, targets)
                logger.log_metrics(everything, trainer.global_step + 1)
        target = "+".join(names[c] for c in targets) if targets else None
        for writer in writers(trainer):
            tags = [tag for of_split in told.values() for tag in of_split]
            write_hparams(writer, hparams_of(pl_module.hparams, target), tags)

    def _log_spectra(self, trainer: Trainer, module: LightningModule) -> None:
        found = _spectra(module) if trainer.loggers else {}
        norms = {name: float(values.norm()) for name, values in found.items()}
        if len(norms) > _MOST_LAYERS:
            norms = {_ALL_LAYERS: math.hypot(*norms.values())}
        _log(trainer, {f"adapter/norm/{k}": norm for k, norm in norms.items()}, trainer.global_step)
        for name in norms.keys() & found.keys():
            for writer in writers(trainer):
                tag = f"adapter/singular_values/{name}"
                # TensorBoard has no bins beyond; training that is there ends, with the reason.
                if found[name].max() < 1e19:
                    writer.add_histogram(tag, found[name], trainer.global_step)


def scalars(
    split: str,
    outcomes: Mapping[str, Outcome],
    names: Sequence[str],
    targets: Sequence[int] | None,
) -> dict[str, float]:
    """The numbers of ``split`` that loggers get, and of its base, by tag.

    Args:
        split: val or test.
        outcomes: what was counted; ``<split>_base`` may be missing.
        names: of the classes that have a curve of their own; none of the others.
        targets: the classes to repair.
    """
    found: dict[str, float] = {}
    for side in (split, f"{split}_base"):
        if side not in outcomes:
            continue
        outcome = outcomes[side]
        errors, images = outcome["errors_per_class"], outcome["images_per_class"]
        totals = {"accuracy": outcome["accuracy"], "loss": outcome["loss"]}
        if targets:
            of_target = sum(errors[c] for c in targets)
            totals |= {"errors_of_target": of_target, "errors_elsewhere": sum(errors) - of_target}
        totals |= {key: outcome[key] for key in ("repaired", "broken") if key in outcome}
        for c, name in _curves(names, targets).items():
            if images[c]:
                totals[f"accuracy_per_class/{name}"] = 1 - errors[c] / images[c]
        found |= {f"{side}/{key}": float(value) for key, value in totals.items()}
    return found


def layout(curves: Mapping[int, str], layers: Sequence[str]) -> dict[str, Any]:
    """The custom scalars page: charts by title, each with the tags that share it."""
    pages: dict[str, dict[str, list[str]]] = {
        **_LAYOUT,
        "Accuracy of each class, base and adapted": {
            name: [f"{side}/accuracy_per_class/{name}" for side in ("val", "val_base")]
            for name in curves.values()
        },
    }
    if layers:
        shown = layers if len(layers) <= _MOST_LAYERS else [_ALL_LAYERS]
        tags = [f"adapter/norm/{name}" for name in shown]
        pages["The adapter"] = {"size of what it adds to each layer (Frobenius norm)": tags}
    # The page takes tags for regular expressions.
    return {
        page: {
            title: ["Multiline", [_exactly(tag) for tag in tags]] for title, tags in charts.items()
        }
        for page, charts in pages.items()
        if charts
    }


def _exactly(tag: str) -> str:
    return f"^{re.escape(tag)}$"


def show_outcome(trainer: Trainer, results: Mapping[str, Any], folder: Path) -> None:
    """Give TensorBoard the verdict in words, a table of the classes, and what was drawn.

    TensorBoard sorts by name: the numbers put first what makes sense first.

    Args:
        trainer: whose loggers there are.
        results: what results.json holds.
        folder: the run's folder, with its figures.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    for writer in writers(trainer):
        writer.add_text("1 verdict", verdict_text(results))
        writer.add_text("2 errors of each class", errors_table(results))
        paths = [folder / FIGURES / f"{name}.png" for name in NAMES]
        for number, path in enumerate((path for path in paths if path.is_file()), start=1):
            png = path.read_bytes()
            # Bytes 16 to 24 of a PNG are its width and height: no need to decode it again.
            width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
            image = Summary.Image(width=width, height=height, encoded_image_string=png)
            value = Summary.Value(tag=f"{number} {path.stem.replace('_', ' ')}", image=image)
            writer._get_file_writer().add_summary(Summary(value=[value]))
        writer.close()  # else its thread would stay, one more with each job of a sweep


def errors_table(results: Mapping[str, Any]) -> str:
    """Markdown: images, repaired, broken and errors of each class of the test."""
    test, base = results["test"], results.get("test_base", {})
    columns = {
        "images": test["images_per_class"],
        "repaired": test.get("repaired_per_class"),
        "broken": test.get("broken_per_class"),
        "base errors": base.get("errors_per_class"),
        "errors": test["errors_per_class"],
    }
    shown = {title: counts for title, counts in columns.items() if counts}
    lines = [f"| class | {' | '.join(shown)} |", "|---|" + "---:|" * len(shown)]
    for name, *counts in zip(results["classes"], *shown.values(), strict=True):
        lines.append(f"| {str(name).replace('|', '/')} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def run_name(config: Mapping[str, Any], targets: Sequence[str]) -> str:
    """What TensorBoard calls a run, behind its folder: ``digit=9,rank=4``; empty for a base.

    Args:
        config: the run's configuration.
        targets: what the classes to repair are called.
    """
    parts = [f"digit={'+'.join(targets)}"] if targets else []
    rank = (config.get("lora") or {}).get("rank")
    return ",".join([*parts, *([f"rank={rank}"] if rank is not None else [])])


def writers(trainer: Trainer) -> list[Any]:
    """The writers of TensorBoard's loggers, in the process that logs."""
    if not trainer.is_global_zero:
        return []
    return [x.experiment for x in trainer.loggers if isinstance(x, TensorBoardLogger)]


def _log(trainer: Trainer, found: Mapping[str, float], step: int) -> None:
    for logger in trainer.loggers if found else ():
        logger.log_metrics(dict(found), step)


def _classes(trainer: Trainer) -> tuple[list[str], list[int] | None]:
    """What the classes are called, without what would begin a level of tags, and the target's."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    names = [name.replace("/", "-") for name in getattr(data, "short_names", [])]
    return names, getattr(data, "targets", None)


def _curves(names: Sequence[str], targets: Sequence[int] | None) -> dict[int, str]:
    """The classes with a curve of their own, by number."""
    if len(names) <= _MOST_CURVES:
        return dict(enumerate(names))
    return {c: names[c] for c in (targets or [])[:_MOST_CURVES]}


def _spectra(module: LightningModule) -> dict[str, Tensor]:
    try:
        return spectra(module.net) if getattr(module, "has_lora", False) else {}  # type: ignore[arg-type]
    except RuntimeError:  # of numbers that are not finite; the loss will say so
        return {}
