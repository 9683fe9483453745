"""From a configuration to the parts of a run: data, network, new adapter, module.

Nothing here changes the configuration; what is decided at run time, such as the class to repair or
the run's folder, is an argument.
"""

import inspect
import pydoc
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import lora_mnist.project  # noqa: F401 the resolver that the configuration needs
from lora_mnist.classifier.module import BaseAnswers, ClassifierModule
from lora_mnist.data import ImageDataModule
from lora_mnist.disk.base import Base
from lora_mnist.errors import UserError, config_group, one_line
from lora_mnist.lora import add_lora, has_lora, is_number

#: The class to repair, by number or name, or several; ``None`` for all classes.
Target = int | str | list[int | str] | None


def require_known_keys(cfg: DictConfig, *known: str) -> None:
    """Refuse a key that nothing reads, such as one added with + by mistake, and bad file names."""
    _require_names(cfg)
    for key in map(str, cfg):
        if key not in known:
            value = cfg[key] if not isinstance(cfg[key], DictConfig) else "..."
            raise UserError(
                f"{key}={value}: nothing reads this key with stage={cfg.stage}; "
                f"expected one of {', '.join(sorted(known))}"
            )


def _require_names(cfg: DictConfig) -> None:
    """Refuse what is no name of a file or folder, where one is meant."""
    names = {f"paths.{key}": value for key, value in cfg.get("paths", {}).items()}
    names |= {key: cfg[key] for key in ("base_ckpt", "base_name") if cfg.get(key) is not None}
    for key, value in names.items():
        if value == "":
            raise UserError(f"{key}='': expected a file or folder")
        try:
            Path(f"{Path(value)}-0123456789ab.ckpt").exists()  # raises for a name that is too long
        except (TypeError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a name"
            raise UserError(f"{key}={value}: expected a file or folder ({reason})") from error


def require_bool(cfg: DictConfig, key: str) -> None:
    """Refuse any other value: what merely is not empty would count as true."""
    if not isinstance(value := cfg[key], bool):
        raise UserError(f"{key}={value}: expected true or false")


def require_figures(cfg: DictConfig) -> None:
    """Refuse what does not say whether a run is drawn."""
    if not (isinstance(value := cfg.figures, bool) or value == "auto"):
        raise UserError(f"figures={value}: expected true, false or auto")


def build_data(cfg: DictConfig, stage: str | None, target: Target = None, **changes: Any) -> Any:
    """The data of ``cfg.data``, with the images of ``stage``: "fit" or "test".

    Args:
        cfg: the run's configuration.
        stage: what the images are for; ``None``: no images, only their mean and deviation.
        target: train on this class, or these classes, alone.
        changes: arguments of the data module that differ from ``cfg.data``.

    Raises:
        UserError: if a value of ``cfg.data`` cannot be used, or the files are damaged or missing.
    """
    with config_group("data"):
        data: ImageDataModule = instantiate(cfg.data, target=target, _convert_="all", **changes)
        if stage is None:
            data.measure()
        else:
            data.prepare_data()
            data.setup(stage)
    return data


def build_net(cfg: DictConfig) -> nn.Module:
    """The network of ``cfg.net``, with fresh weights.

    Raises:
        UserError: if a value of ``cfg.net`` cannot be used.
    """
    kind = find_net(cfg)
    try:
        with config_group("net"):
            net: Any = instantiate(cfg.net, _convert_="all")
    except UserError as error:
        raise UserError(f"{error}{_signature(cfg, kind)}") from error
    if not isinstance(net, nn.Module):
        found = type(net).__name__
        raise UserError(f"net._target_={cfg.net._target_}: gives a {found}; expected an nn.Module")
    return net


def find_net(cfg: DictConfig) -> Any:
    """What ``cfg.net._target_`` names: a class, or a function that returns a network.

    Raises:
        UserError: if there is none.
    """
    if OmegaConf.is_missing(cfg.net, "_target_"):
        raise UserError("net._target_: missing; expected a class, as net._target_=my_nets.Net")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # where a user's own network is looked up
    target = f"net._target_={cfg.net._target_}"
    try:
        kind = pydoc.locate(str(cfg.net._target_))
    except pydoc.ErrorDuringImport as error:
        raise UserError(f"{target}: {one_line(error)}") from error
    if kind is None:
        raise UserError(
            f"{target}: not found; expected MODULE.CLASS, with MODULE in {here} or installed"
        )
    return kind


def _signature(cfg: DictConfig, kind: Any) -> str:
    """What the configured class takes, to end an error message."""
    try:
        takes = f"; it takes {inspect.signature(kind)}"
    except (TypeError, ValueError):  # as some that are written in C
        takes = ""
    # net=custom alone leaves the group open, and comes without keys of its own.
    if str(cfg.net._target_).startswith("lora_mnist.") or not OmegaConf.is_struct(cfg.net):
        return takes
    return f"{takes}; expected net=custom, which adds no arguments of its own"


@torch.no_grad()
def require_fit(net: nn.Module, data: ImageDataModule, images: Tensor) -> Tensor:
    """Refuse a network that cannot take these images, or has not one output for each class.

    Args:
        net: the network; one forward pass in eval mode leaves it as it is.
        data: whose classes ``net`` is to tell apart.
        images: some of its images, uint8, shape (N, channels, height, width).

    Returns:
        What the network answers: logits, shape (N, classes).

    Raises:
        UserError: with both shapes.
    """
    batch, _ = data.on_after_batch_transfer((images, torch.empty(0)), 0)
    shape, expected = tuple(batch.shape), (len(batch), len(data.classes))
    modes = {module: module.training for module in net.modules()}
    try:
        output: Tensor = net.eval()(batch)
    except Exception as error:  # whatever the network's own layers raise
        raise UserError(
            f"net: cannot take images of shape {shape} from {data.name} ({one_line(error)})"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != expected:
        raise UserError(
            f"net: answers {found} to images of shape {shape}; expected {expected}, an output for "
            f"each of the {len(data.classes)} classes of {data.name}"
        )
    return output


def add_configured_lora(cfg: DictConfig, net: nn.Module) -> None:
    """Put a new adapter as ``cfg.lora`` says on ``net``, in train mode; the base stays in eval.

    Raises:
        UserError: if a value of ``cfg.lora`` cannot be used.
    """
    with config_group("lora"):
        add_lora(net, **OmegaConf.to_container(cfg.lora, resolve=True)).train()  # type: ignore[arg-type]


def choose_trainable(net: nn.Module, pattern: str) -> None:
    """Freeze every parameter of ``net`` but those whose full name matches ``pattern``.

    ``net`` is then in train mode, dropout and batch normalisation included.

    Raises:
        UserError: if ``pattern`` is no regular expression or matches no parameter.
    """
    names = [name for name, _ in net.named_parameters()]
    try:
        chosen = {name for name in names if re.fullmatch(pattern, name)}
    except (re.error, TypeError) as error:
        raise UserError(f"trainable={pattern}: expected a regular expression ({error})") from error
    if not chosen:
        raise UserError(
            f"trainable={pattern}: expected to match a parameter, of: {', '.join(names)}"
        )
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in chosen)
    net.train()


def build_module(
    cfg: DictConfig,
    net: nn.Module,
    data: ImageDataModule,
    base: Base | None = None,
    answers: BaseAnswers | None = None,
) -> ClassifierModule:
    """The module that trains ``net``, which carries LoRA or is compared with ``base``.

    Args:
        cfg: the run's configuration.
        net: the network.
        data: what it is trained on.
        base: what ``net`` starts from; ``None`` with stage=pretrain.
        answers: what the base answered to the images, where an earlier job has found that out.

    Raises:
        UserError: if a value of ``cfg`` cannot be used, or two do not go together.
    """
    _check_fit_together(cfg, data)
    hyperparameters: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    hyperparameters |= {"base_sha256": base and base.sha256, "target": data.target}
    with config_group("loss"):
        loss = instantiate(cfg.loss, target=data.targets, _convert_="all")
    if not (is_number(lr := cfg.optimizer.get("lr", 0.0)) and lr >= 0):
        raise UserError(f"optimizer.lr={lr}: expected a finite number >= 0")
    with config_group("optimizer"):
        settings = {key: value for key, value in cfg.optimizer.items() if key != "lr_ratio"}
        optimizer = instantiate(settings, _convert_="all")  # else checkpoints hold what is no list
        with _naming_values("optimizer", optimizer):  # now, and not in the middle of the fit
            first = optimizer(net.parameters())
    with config_group("scheduler"):
        scheduler = instantiate(cfg.scheduler, _convert_="all") if cfg.scheduler else None
        if scheduler:
            if -1 in (scheduler.keywords.get(key) for key in ("T_max", "total_iters")):
                raise UserError(
                    "trainer.max_steps=-1: expected the number of steps, since scheduler counts "
                    "them"
                )
            with _naming_values("scheduler", scheduler):
                schedule = scheduler(first)
                first.step()  # no gradient, no change; a schedule warns without it
                schedule.step()
    with config_group("optimizer"):
        return ClassifierModule(
            net,
            len(data.classes),
            loss=loss,
            optimizer=optimizer,
            scheduler=scheduler,
            lr_ratio=cfg.optimizer.lr_ratio,
            base_tensors=base.tensors if base and not has_lora(net) else None,
            base_answers=answers,
            hyperparameters=hyperparameters,
        )


@contextmanager
def _naming_values(group: str, partial: Any) -> Iterator[None]:
    """Say which values an optimizer or a schedule was given, where Python's message does not."""
    try:
        yield
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        given = ", ".join(
            f"{key}={value}" for key, value in getattr(partial, "keywords", {}).items()
        )
        raise UserError(f"{group}: {one_line(error)}, with {given}") from error


def _check_fit_together(cfg: DictConfig, data: ImageDataModule) -> None:
    """Refuse values that are each right on their own, but not together."""
    if cfg.stage != "lora" and cfg.optimizer.lr_ratio != 1:
        raise UserError(
            f"optimizer.lr_ratio={cfg.optimizer.lr_ratio}: expected 1, since stage={cfg.stage} "
            "trains no lora_B"
        )
    distill = cfg.loss.get("distill")
    if cfg.stage == "pretrain":
        for key, value in {"loss.distill": distill, "data.hardness": data.hardness}.items():
            if value:
                raise UserError(f"{key}={value}: expected 0, since stage=pretrain has no base")
    elif distill and cfg.loss.distill_on == "replay" and not data.replay:
        raise UserError(
            f"loss.distill={distill}: expected data.replay > 0, or loss.distill_on=target"
        )
