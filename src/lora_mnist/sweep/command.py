"""The command that starts a sweep: what it asks for, checked, and how to say it again."""

import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, ListConfig, OmegaConf

from lora_mnist.errors import UserError

_reads_unquoted = re.compile(r"[\w/.+-]+", re.ASCII).fullmatch


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        title: may hold ``{KEY}``: the value of KEY in ``results.json`` if all jobs share it, else
            the last part of KEY's name.
        value: key of ``results.json``, nested keys joined by dots.
        before: another key, whose value stands before an arrow.
    """

    title: str
    value: str
    before: str | None = None


@dataclass(frozen=True)
class Ranking:
    """How a sweep's jobs are ranked and listed; the part ``sweep`` of the configuration.

    Attributes:
        metric: key of ``results.json``, nested keys joined by dots; ``None`` lists the jobs by
            what was swept.
        mode: "max" or "min": which end of ``metric`` is best.
        metrics: patterns of the keys that ``metric`` may be.
        columns: of the table, after the metric's own.
        start: what all jobs start from, if they do; a row of its own in the table.
    """

    metric: str | None = None
    mode: str = "max"
    metrics: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    start: "Start | None" = None

    def is_better(self, value: float, other: float) -> bool:
        """Whether ``value`` of the metric is better than ``other``."""
        return value > other if self.mode == "max" else value < other


@dataclass(frozen=True)
class Start:
    """What the jobs start from; its numbers stand beside theirs in ``results.json``.

    Attributes:
        title: what the table calls it.
        suffix: of the part of ``results.json`` that holds its numbers: with ``_base`` that of
            ``val.accuracy`` is ``val_base.accuracy``.
    """

    title: str
    suffix: str

    def key(self, key: str) -> str:
        """Where its number for ``key`` stands."""
        part, _, rest = key.partition(".")
        return f"{part}{self.suffix}.{rest}"


def read_ranking(config: DictConfig) -> Ranking:
    """The ranking that a configuration asks for.

    Raises:
        UserError: if the metric may not rank, or a value cannot be used.
    """
    metric, mode, fail_fast, metrics, columns = (
        OmegaConf.select(config, f"sweep.{key}")
        for key in ("metric", "mode", "fail_fast", "metrics", "columns")
    )
    for key, value in {"metrics": metrics, "columns": columns}.items():
        if not isinstance(value, ListConfig | None):
            raise UserError(f"sweep.{key}={value}: expected a list, or null")
    metrics = tuple(map(str, metrics or ()))
    if mode not in ("min", "max"):
        raise UserError(f"sweep.mode={mode}: expected max or min")
    if not isinstance(fail_fast, bool | None):
        raise UserError(f"sweep.fail_fast={fail_fast}: expected true or false")
    if metric is None:
        if is_search(config):
            raise UserError(
                "sweep.metric=null: a search needs one; expected one such as val.accuracy"
            )
    elif str(metric).startswith("test"):
        raise UserError(
            f"sweep.metric={metric}: the test set must not choose; "
            "expected a validation metric such as val.accuracy, or null"
        )
    elif metrics and not any(fnmatchcase(str(metric), pattern) for pattern in metrics):
        raise UserError(f"sweep.metric={metric}: expected one of {', '.join(metrics)}, or null")
    return Ranking(
        metric=None if metric is None else str(metric),
        mode=mode,
        metrics=metrics,
        columns=tuple(_read_column(column) for column in columns or ()),
        start=_read_start(OmegaConf.select(config, "sweep.start")),
    )


def _read_column(column: Any) -> Column:
    try:
        read = Column(**column)
        _require_texts(read.title, read.value, *([] if read.before is None else [read.before]))
        return read
    except TypeError as error:
        raise UserError(
            f"sweep.columns={column}: expected title and value, and perhaps before"
        ) from error


def _read_start(start: Any) -> Start | None:
    try:
        if start is None:
            return None
        read = Start(**start)
        _require_texts(read.title, read.suffix)
        return read
    except TypeError as error:
        raise UserError(f"sweep.start={start}: expected title and suffix, or null") from error


def _require_texts(*values: object) -> None:
    if not all(isinstance(value, str) for value in values):
        raise TypeError


def is_search(config: DictConfig) -> bool:
    """Whether the sweeper looks for a best job, and does not know all jobs beforehand."""
    return OmegaConf.select(config, "hydra.sweeper.n_trials") is not None


def read_grid(config: DictConfig) -> tuple[list[str], int]:
    """The keys that the command leaves fixed, and how many jobs a grid over the others has.

    Raises:
        UserError: if the grid is empty.
        CompactHydraException: if an override does not follow Hydra's grammar.
    """
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    texts = [*(f"{k}={v}" for k, v in params.items()), *config.hydra.overrides.task]
    fixed, sizes = {}, {}
    # glob(*) asks the loader which options a group has.
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    for override in parser.parse_overrides(texts):
        key = override.get_key_element().lstrip("+~")
        fixed[key], sizes[key] = not override.is_sweep_override(), 1
        if override.is_discrete_sweep():
            sizes[key] = sum(1 for _ in override.sweep_string_iterator())
            if sizes[key] == 0:
                raise UserError(
                    f"{override.input_line}: an empty grid; expected at least one value"
                )
    return [key for key in fixed if fixed[key]], prod(sizes.values())


def launch_overrides(config: DictConfig) -> list[str]:
    """What the command says to Hydra itself, and what a resumed sweep should hear again."""
    left_out = ("hydra.mode=", "hydra.sweep.dir=", "hydra.job.config.override_dirname.")
    return [o for o in config.hydra.overrides.hydra if not o.startswith(left_out)]


def entry_script(job_name: str) -> str:
    """The script that runs, by the path with which it was started."""
    started = Path(sys.argv[0])
    return sys.argv[0] if started.name == f"{job_name}.py" else f"{job_name}.py"


def command_line(entry: str, arguments: Iterable[str]) -> str:
    """A command ready to paste into bash or zsh."""
    return " ".join(map(_shell_word, ["python", entry, *arguments]))


def _shell_word(text: str) -> str:
    # Hydra's own quotes are single ones, which shlex would break into five pieces.
    plain = "'" in text and not set('"$`\\!') & set(text)
    return f'"{text}"' if plain else shlex.quote(text)


def override(key: str, value: object) -> str:
    """``key=value`` as Hydra's override grammar has it, quoted only where it must be."""
    text = str(value)
    return f"{key}={text if _reads_unquoted(text) else quoted(text)}"


def quoted(text: str) -> str:
    """``text`` as one quoted value of Hydra's override grammar."""
    return QuotedString(text, Quote.single).with_quotes()
