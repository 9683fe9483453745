"""The part that the five entries share: a command goes in, Hydra runs it, an exit code comes out.

Nothing here imports torch at once, so that ``--help`` need not wait.
"""

import logging
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import env_override
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from lora_mnist.cli.sweep import close_sweep, end_early, open_sweep, run_job
from lora_mnist.config.command import CLASSIFIER, Run, in_grammar, unknown_key
from lora_mnist.errors import GROUP_OF, ArgumentError, UserError, one_line, printable, refusal_of
from lora_mnist.project import CONFIGS, command_line
from lora_mnist.run_paths import LAST_CHECKPOINT, TRIALS_FOLDER, refuse_used_folder

log = logging.getLogger(__name__)

Command = Callable[[DictConfig, Run], object]

#: Names such as Flöte in a list, which Hydra reads in quotes alone.
_NOT_ASCII = re.compile(r"""\b[^][(){},:='"]*[^\x00-\x7f][^][(){},:='"]*""")


def run_entry(function: Command, config_name: str) -> None:
    """Run a command by Hydra's ``main``.

    A refusal, or a signal, is told in a line, with the exit code that fits; any other error is
    raised, for Python to show where. Hydra makes a line or a warning of an Exception, and lets
    SystemExit pass.
    """
    signals: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        """End the command at a signal, as Lightning then ends the processes that it has started."""
        signals.append(number)
        raise KeyboardInterrupt

    def task(cfg: DictConfig) -> float | None:
        conf = HydraConfig.get()
        run = Run.of_command_line(conf, Path(conf.runtime.output_dir))
        metric = None
        with _ending():
            try:
                if run.is_sweep and "sweep" in cfg:
                    metric = run_job(function, cfg, run, conf, explain)
                else:
                    function(cfg, run)
            except Exception as error:
                reason = explain(error)
                log.error("%s", reason or one_line(error), exc_info=reason is None)
                if not signals:
                    raise
        if signals:  # in a __del__, where Python ignores what is raised
            raise KeyboardInterrupt
        return metric

    main = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(task)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        # With this, Hydra raises its errors instead of printing them and exiting with 1.
        with _ending(), env_override({"HYDRA_FULL_ERROR": "1"}):
            sys.argv[1:] = _for_hydra(sys.argv[1:])  # there for the processes of Lightning, too
            for place, text in enumerate(sys.argv):
                if text in ("--help", "-h"):
                    _print_groups(config_name)
                    sys.argv[place] = "--cfg=job"
            main()
        return
    except (KeyboardInterrupt, SystemExit) as raised:
        end: BaseException = raised
    if signals or isinstance(end, KeyboardInterrupt):  # Lightning makes a SystemExit of a signal
        sent = signal.Signals(signals[0] if signals else signal.SIGINT)
        end = _told(f"interrupted by {sent.name}", 128 + sent)
    raise end.__cause__ or end


@contextmanager
def _ending() -> Iterator[None]:
    """Inside the ``with`` block, an error ends the command: a refusal is told, a bug the cause."""
    try:
        yield
    except Exception as error:
        reason = explain(error)
        if reason is not None:
            raise _told(reason, getattr(error, "exit_code", UserError.exit_code)) from None
        if advice := _leave_folder(None, 1):
            error.add_note(advice)
        raise SystemExit(1) from error


def _told(reason: str, code: int) -> SystemExit:
    """The end of a command, after the line that says why."""
    print("\n".join([reason, _leave_folder(reason, code)]).rstrip(), file=sys.stderr)
    return SystemExit(code)


def _leave_folder(reason: str | None, code: int) -> str:
    """Remove the folder of a run that has made nothing; say how to go on, or to start again."""
    if not HydraConfig.initialized():
        return ""
    conf = HydraConfig.get()
    if conf.mode == RunMode.MULTIRUN:
        return end_early(Path(conf.sweep.dir))
    # Without a subfolder of Hydra's the folder is the user's, or another process has made it.
    if conf.output_subdir is None:
        return ""
    folder, log_file = Path(conf.run.dir).absolute(), f"{conf.job.name}.log"
    files = {path.name for path in folder.glob("*")}
    if reason is not None and code != 1 and files <= {conf.output_subdir, log_file}:
        shutil.rmtree(folder, ignore_errors=True)
    if reason is not None and code <= 2:  # a refusal
        return ""
    name, run = str(conf.job.config_name), Run.of_command_line(conf, folder)
    ours, last = ("hydra.run.dir", "hydra.mode"), folder / LAST_CHECKPOINT
    if last.is_file() and not (folder / TRIALS_FOLDER).exists():  # several trainings start again
        typed = [*run.typed_without(*ours, "ckpt_path"), f"ckpt_path={in_grammar(last)}"]
        return f"go on with: {command_line(name, typed)}"
    if code > 2:  # of a signal
        return f"start again with: {command_line(name, run.typed_without(*ours))}"
    return f"log: {folder / log_file}"


def _print_groups(name: str) -> None:
    """How ``--help`` begins. Hydra's own takes a second: it copies all groups for each one."""
    help_of = OmegaConf.select(OmegaConf.load(CONFIGS / f"{name}.yaml"), "hydra.help")
    if help_of is not None:
        print(help_of.header)
    print("Groups; GROUP=NAME chooses:")
    for folder in sorted(CONFIGS.rglob("*/")):
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        print(f"  {folder.relative_to(CONFIGS).as_posix()}: {', '.join(names)}")
    print("\nKeys; KEY=VALUE sets:")


def _for_hydra(typed: list[str]) -> list[str]:
    """The arguments as Hydra takes them: options first, texts quoted."""
    options, overrides, parser = [], [], OverridesParser.create()
    for text in typed:
        key, equals, value = text.partition("=")
        if key.startswith("-") or not (equals or key.startswith("~")):
            options.append(text)
            continue
        try:
            is_number = isinstance(parser.parse_override(text).value(), int | float)
            if is_number and (CONFIGS / key).is_dir():  # as a text, Hydra lists what there is
                text = f"{key}='{value}'"
        except HydraException:  # a name such as Flöte or epoch=3.ckpt, or a list of such
            is_list = set(value) & set(",[]{}()")
            text = _NOT_ASCII.sub(r'"\g<0>"', text) if is_list else f"{key}={in_grammar(value)}"
        overrides.append(re.sub("^classifier=", f"{CLASSIFIER}=", text))
    return options + overrides


# --- what went wrong, in a line ------------------------------------------------------------------


def _no_stage() -> str:
    """The two commands to choose from, each with what was typed."""
    typed = [text.replace(f"{CLASSIFIER}=", "classifier=") for text in sys.argv[1:]]
    if typed[:1] == ["--config-name"]:  # which lora-mnist has put before the command's name
        typed = typed[2:]
    others = [text for text in typed if not text.startswith("experiment=")]
    pretrain = command_line("train", [*typed, "stage=pretrain"])
    repair = command_line("train", [*others, "experiment=repair"])
    return (
        "stage: missing; expected one of\n"
        f"  {pretrain}        to train a base\n"
        f"  {repair}    to repair it with an adapter"
    )


def explain(error: BaseException) -> str | None:
    """The line about an error that a key, a value or a file has caused; ``None``: another error."""
    if isinstance(error, UserError):
        return printable(error)
    if isinstance(error, ArgumentError):
        return printable(refusal_of(error))
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_configuration(error)
    if isinstance(error, YAMLError):
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", "")
        if mark is None:  # a character that no YAML has
            return one_line(error)
        return f"{mark.name}: line {mark.line + 1}, column {mark.column + 1}: {problem}"
    return None


def _explain_configuration(error: BaseException) -> str:
    """What is wrong with an override or a key, in the words of Hydra or OmegaConf."""
    # Hydra says which override was wrong, and OmegaConf, its cause, why.
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.parent_node is not None:
        key = str(cause.full_key)
        if OmegaConf.is_missing(cause.parent_node, "stage"):
            return _no_stage()  # which keys there are depends on it
        if not isinstance(error, HydraException):  # the command reads it
            return f"{key}: missing; expected a value"
        function, (group, _, name) = cause.parent_node.get("_target_"), key.rpartition(".")
        if function and name not in GROUP_OF:
            beside = ", ".join(f"{group}.{each}" for each in cause.parent_node if each[0] != "_")
            new = f"+{key}, a new argument of {function}"
            return f"{key}: nothing reads this key; expected one of {beside}, or {new}"
        return unknown_key(key)
    if isinstance(cause, OmegaConfBaseException):
        reason, _, _ = str(cause).partition("\n    full_key:")  # the rest is for programmers
        reason = reason.rpartition(" raised while resolving interpolation: ")[2]
        return one_line(f"{cause.full_key}: {reason}")
    message = one_line(str(error).partition("Config search path:")[0])
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            message = "expected KEY=VALUE; one with spaces stands in quotes: 'KEY=A VALUE'"
        return f"{error.override}: {message}"
    if "hydra/launcher" in message or "hydra/sweeper" in message:
        return f'{message}; others: pip install "lora-mnist[sweep]", or [ray], or [slurm]'
    if "config group 'classifier' does not exist" in message:
        return (
            "classifier: expected --config-dir FOLDER, with your file in it: "
            "FOLDER/classifier/NAME.yaml"
        )
    no_group = re.match(r"Could not \w+ '([\w/]+)'. No match", message)
    if no_group and (CONFIGS / no_group[1]).is_dir():
        return f"{no_group[1]}: nothing reads this group here; another command has it"
    if no_group and Path(name := no_group[1]).is_dir():  # --config-dir . images=images
        return (
            f"{name}: with --config-dir, Hydra takes the folder {name} for a group of "
            "settings; expected another name for it, or a folder with nothing but classifier/"
        )
    return message


# --- folders -------------------------------------------------------------------------------------


class ClaimOutputFolder(Callback):
    """Hydra callback: claims the folder of a run, or of a sweep."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim ``hydra.run.dir``."""
        with _in_callback(config):
            folder, subfolder = Path(config.hydra.run.dir), config.hydra.output_subdir
            if subfolder is None:  # of processes that Lightning starts
                return
            refuse_used_folder("hydra.run.dir", folder, subfolder, f"{config.hydra.job.name}.log")
            # If two runs start at once, the second fails here.
            (folder / subfolder).mkdir(parents=True)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the sweep; where an entry keeps no results, Hydra runs its jobs alone."""
        with _in_callback(config):
            if "sweep" in config:
                open_sweep(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """End the sweep with its summary."""
        with _in_callback(config):
            if "sweep" in config:
                close_sweep(config)


@contextmanager
def _in_callback(config: DictConfig) -> Iterator[None]:
    """Inside the ``with`` block of a callback, an error ends the command."""
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    swept = {*(OmegaConf.select(config, "hydra.sweeper.params") or {})}
    with _ending():
        try:
            HydraConfig.instance().set_config(config)  # as Hydra does next, for ${hydra:...}
            for each in OverridesParser.create().parse_overrides(typed):
                if each.is_sweep_override():
                    swept.add(each.key_or_group)
            if OmegaConf.is_missing(config, "stage") and not swept & {"stage", "experiment"}:
                raise UserError(_no_stage())
            if config.hydra.job.chdir:
                expected = "expected false, since paths begin where you are"
                raise UserError(f"hydra.job.chdir=true: {expected}")
            yield
        except Exception:
            HydraConfig.instance().cfg = None  # the folder is somebody else's, or finished
            raise
