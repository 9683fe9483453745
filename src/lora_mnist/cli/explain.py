"""Explains an error that a key, a value or a file has caused, in one line.

``test_hydras_words`` in tests/cli/test_explain.py fails as soon as Hydra changes its messages.
"""

import logging
import re
from collections.abc import Sequence
from errno import EDQUOT, EFBIG, ENOSPC, EROFS
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from lora_mnist.cli.arguments import config_dir, read_arguments
from lora_mnist.config.keys import describe_unknown_key
from lora_mnist.errors import (
    ArgumentError,
    UserError,
    format_refusal,
    one_line,
    printable,
    suggest_nearest,
)
from lora_mnist.project import CONFIGS, format_command, install_command

# Texts of Hydra 1.3, whose errors have neither class nor attribute for this.
_SEARCH_PATH = "Config search path:"  # the rest is for programmers
_FULL_KEY = "\n    full_key:"  # OmegaConf's, as the next one
_NO_CLASSIFIER = r"=(\S+) looks .* config group 'classifier' does not exist"
_NO_GROUP = r"(?:In '(\S+)': )?Could not \w+ '([\w/]+)'. No match"
#: The extra that installs each Hydra launcher or sweeper.
_EXTRAS = {"joblib": "sweep", "optuna": "sweep", "ray": "ray", "submitit_slurm": "slurm"}

log = logging.getLogger(__name__)


def log_failure(error: Exception) -> str:
    """Log why a run or a job has failed, with the traceback of a bug; return its line."""
    reason = explain(error)
    line = reason or one_line(f"{type(error).__name__}: {error}")
    log.error("%s", line, exc_info=reason is None)
    return line


def explain(error: BaseException) -> str | None:
    """Return one line about an error that a key, a value or a file has caused, else None."""
    if isinstance(error, UserError):
        return printable(error)
    if isinstance(error, ArgumentError):
        return printable(format_refusal(error))
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_configuration(error)
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EFBIG, EROFS):
        keys = ("out=", "paths.outputs=", "hydra.run.dir=", "hydra.sweep.dir=")
        arguments = " ".join(text for text in read_arguments() if text.startswith(keys))
        return f"{arguments or 'paths.outputs=outputs'}: {one_line(error)}; free some disk space"
    return one_line(error) if isinstance(error, YAMLError) else None


def _explain_configuration(error: BaseException) -> str:
    """Return a line about a wrong override or key: Hydra's, or a clearer one."""
    # Hydra's error names the override; its cause, OmegaConf's, has the reason.
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause is not error:
        if OmegaConf.is_missing(cause.parent_node, "stage"):
            return explain_missing_stage()  # the keys depend on it
        function = cause.parent_node.get("_target_")
        more = f"; +{cause.full_key} adds an argument of {function}" if function else ""
        return describe_unknown_key(str(cause.full_key)) + more
    if isinstance(cause, OmegaConfBaseException):
        return one_line(f"{cause.full_key}: {str(cause).partition(_FULL_KEY)[0]}")
    message = one_line(str(error).partition(_SEARCH_PATH)[0])
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            message = "expected KEY=VALUE; one with spaces stands in quotes: 'KEY=A VALUE'"
        return f"{error.override}: {message}"
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _explain_missing_choice(str(error.missing_cfg_file), error.options)
    if no_classifier := re.search(_NO_CLASSIFIER, message):
        return _explain_missing_file(no_classifier[1])
    if no_group := re.match(_NO_GROUP, message):
        return _explain_missing_group(*no_group.groups())
    return message


def _explain_missing_choice(chosen: str, options: Sequence[str]) -> str:
    """Return a line with the options of a group, or with the extra that has the missing one."""
    group, _, name = chosen.rpartition("/")
    if group == "classifier":
        return _explain_missing_file(name)
    if group in ("hydra/launcher", "hydra/sweeper") and name in _EXTRAS:
        extra = _EXTRAS[name]
        return f"{group}={name}: expected the extra {extra}: {install_command(extra)}"
    return f"{group}={name}: expected one of {', '.join(options)}{suggest_nearest(name, options)}"


def _explain_missing_group(file: str | None, group: str) -> str:
    """Return a line about a file that overrides a missing group, or a folder that hides a key."""
    if file is not None:
        groups = [path.name for path in CONFIGS.iterdir() if path.is_dir()]
        nearest = suggest_nearest(group, groups)
        return f"{file}.yaml: override /{group}: there is no such group{nearest}"
    folder = Path(config_dir() or CONFIGS, group)
    if folder.is_dir() and not (CONFIGS / group).is_dir():
        return (
            f"{group}: Hydra takes the folder {folder} for a group of configuration files; "
            "expected another name for it, or a --config-dir that has classifier/ alone"
        )
    return f"{group}: this command has no such group of keys"


def _explain_missing_file(name: str) -> str:
    """Return a line about the missing file of ``classifier=NAME``, or its missing folder."""
    folder = config_dir()
    file = Path(folder or "FOLDER", "classifier", f"{name}.yaml")
    reason = "no such file:" if folder else "expected --config-dir FOLDER, and your file"
    return f"classifier={name}: {reason} {file}"


def explain_missing_stage() -> str:
    """Return the two commands to choose from, with the arguments of this one."""
    arguments = read_arguments()
    others = [text for text in arguments if not text.startswith("experiment=")]
    pretrain = format_command("train", [*arguments, "stage=pretrain"])
    repair = format_command("train", [*others, "experiment=repair"])
    return (
        "stage: missing; expected one of\n"
        f"  {pretrain}        to train a base\n"
        f"  {repair}    to repair it with an adapter"
    )
