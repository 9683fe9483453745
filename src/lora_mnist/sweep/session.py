"""A sweep from its first to its last line: its folder claimed, its end summarised."""

import os
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TextIO

from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lora_mnist.errors import UserError
from lora_mnist.sweep.command import command_line, override
from lora_mnist.sweep.folder import claim, read_sweep, write_sweep
from lora_mnist.sweep.summary import Ranked, summarize

#: What launchers and sweepers read from the environment alone, where it is not set.
_ENVIRONMENT = {
    # About the SQLAlchemy that the sweeper's optuna needs; nothing a user could act on.
    "SQLALCHEMY_SILENCE_UBER_WARNING": "1",
    # Ray would take the lines of different jobs for repetitions, and report its use to its makers.
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass
class _Sweep:
    folder: Path
    lock: FileLock
    resume_command: str


#: The sweep that this process conducts; ``None`` in the workers of a parallel launcher, and where
#: no sweep runs. Hydra offers no way from its callbacks to where the command ends.
_conducted: _Sweep | None = None


def is_conducting() -> bool:
    """Whether this process conducts a sweep, and is no worker of one."""
    return _conducted is not None


def open_sweep(config: DictConfig) -> None:
    """Claim the sweep's folder, new or resumed, and write down what its jobs will share.

    Raises:
        UserError: if the sweep cannot be as the command wants it.
        HydraException: if an override does not follow Hydra's grammar.
    """
    global _conducted
    ranking = config.sweep
    _check_ranking(config)
    fixed = [key for key, is_swept in swept_keys(config).items() if not is_swept]
    folder = Path(config.hydra.sweep.dir).absolute()
    lock = claim(folder, ranking.resume is not None)
    if OmegaConf.select(config, "hydra.sweeper.sampler.seed") is not None:
        # With its generator at the start again, the sweeper would repeat what the study has.
        # A new study is filled by the results of the finished jobs.
        (folder / "optuna.db").unlink(missing_ok=True)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    typed = [*config.hydra.overrides.task, *config.hydra.overrides.hydra]
    typed = [text for text in typed if not text.startswith("hydra.mode=")]
    kept = [text for text in typed if not text.startswith(("sweep.resume=", "hydra.sweep.dir="))]
    resume = command_line(["-m", *kept, override("sweep.resume", folder)])
    commands = read_sweep(folder).get("commands", [])
    shown = OmegaConf.masked_copy(ranking, ["metric", "mode", "start", "columns"])
    sweep = {"commands": [*commands, command_line(["-m", *typed])]}
    sweep |= {"fixed": fixed, "entry": sys.argv[0], **OmegaConf.to_container(shown)}  # type: ignore[dict-item]
    write_sweep(folder, sweep)
    _conducted = _Sweep(folder, lock, resume)


def _check_ranking(config: DictConfig) -> None:
    metric, mode, fail_fast = config.sweep.metric, config.sweep.mode, config.sweep.fail_fast
    patterns = [str(pattern) for pattern in config.sweep.metrics]
    if mode not in ("max", "min"):
        raise UserError(f"sweep.mode={mode}: expected max or min")
    if not isinstance(fail_fast, bool):
        raise UserError(f"sweep.fail_fast={fail_fast}: expected true or false")
    if config.sweep.resume is not None:
        for text in config.hydra.overrides.hydra:
            if text.startswith("hydra.sweep.dir="):
                raise UserError(f"{text}: expected no folder beside sweep.resume, which names one")
    if str(metric).startswith("test"):
        raise UserError(
            f"sweep.metric={metric}: the test set must not choose; "
            f"expected one of {', '.join(patterns)}"
        )
    if metric is None and OmegaConf.select(config, "hydra.sweeper.n_trials") is not None:
        raise UserError(f"sweep.metric=null: a search needs one; expected one of {patterns}")
    if metric is not None and not any(fnmatchcase(str(metric), p) for p in patterns or ["*"]):
        raise UserError(f"sweep.metric={metric}: expected one of {', '.join(patterns)}, or null")


def swept_keys(config: DictConfig) -> dict[str, bool]:
    """The keys that a command sets, and whether it sweeps them.

    Raises:
        UserError: if it sweeps one over nothing.
        HydraException: if an override does not follow Hydra's grammar.
    """
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    texts = [*(f"{k}={v}" for k, v in params.items()), *config.hydra.overrides.task]
    # glob(*) asks the loader which options a group has.
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    keys = {}
    for parsed in parser.parse_overrides(texts):
        keys[parsed.get_key_element().lstrip("+~")] = parsed.is_sweep_override()
        if parsed.is_discrete_sweep() and not list(parsed.sweep_string_iterator()):
            raise UserError(f"{parsed.input_line}: an empty grid; expected at least one value")
    return keys


def close_sweep(reason: str | None, code: int) -> tuple[int, Path | None]:
    """Write and print the summary of the sweep that this process conducts.

    Args:
        reason: what ended it before its end.
        code: the exit code that belongs to that.

    Returns:
        The process's exit code: 0 if every job of the command finished. And the sweep's folder;
        ``None`` where Hydra refused the command before any job.
    """
    global _conducted
    assert _conducted is not None
    sweep, _conducted = _conducted, None
    sweep.lock.release()
    ranked = Ranked(sweep.folder)
    now = len(ranked.sweep["commands"])
    if reason and code < 128 and not any(job.command == now for job in ranked.jobs):
        say(reason, sys.stderr)  # no summary of nothing, and the same command would fail again
        return code, None
    text, complaint = summarize(ranked)
    say(text)
    unfinished = [job for job in ranked.unfinished if job.command in (now, None)]
    problems = []
    for status in ("failed", "damaged"):
        if count := sum(job.status == status for job in unfinished):
            problems.append(f"{count} {status}")
    if reason:
        problems.append(reason)
    if not problems and (code or unfinished):
        problems = ["not all jobs ran"]
    if problems:
        say(f"{', '.join(problems)}; go on with: {sweep.resume_command}", sys.stderr)
        return code or 1, sweep.folder
    if complaint:
        say(complaint, sys.stderr)
        return UserError.exit_code, sweep.folder
    return 0, sweep.folder


def say(text: str, stream: TextIO | None = None) -> None:
    """Print at once. A reader that has left, as in ``| head``, ends neither a job nor the sweep."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # What is left in the buffer would fail again when Python flushes it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
