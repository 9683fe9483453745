"""The command line in Hydra's form. No other file reads ``sys.argv``.

Hydra reads its arguments from nowhere else, and Lightning starts further processes with them.
"""

import re
import sys
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException

from lora_mnist import __version__
from lora_mnist.config.run import CLASSIFIER, quote_for_hydra
from lora_mnist.errors import UserError, format_value
from lora_mnist.project import COMMANDS, CONFIGS, expand_path

USAGE = f"""lora-mnist {__version__}

  lora-mnist train stage=pretrain                      pretrain a base
  lora-mnist train experiment=repair target=weakest    repair its weakest class
  lora-mnist train stage=lora digit=9                  train an adapter on the nines alone
  lora-mnist eval adapter=latest                       test the base, and a saved adapter beside it
  lora-mnist predict images=FOLDER adapter=latest      which class pictures show
  lora-mnist export adapter=latest out=FILE            base and adapter as one plain network
  lora-mnist demo                                      a page to draw on

lora-mnist COMMAND --help lists every key of a command, which KEY=VALUE sets. Your own are in a file
of yours, classifier/photos.yaml: lora-mnist COMMAND --config-dir . classifier=photos"""


def parse_command() -> str:
    """Return the command's name; replace it in ``sys.argv`` by Hydra's ``--config-name NAME``."""
    if sys.argv[1:2] != ["--config-name"]:  # which a process that Lightning starts has
        sys.argv.insert(1, "--config-name")
    name = sys.argv[2] if len(sys.argv) > 2 else ""
    if name in ("--help", "-h"):
        print(USAGE)
        raise SystemExit(0)
    if name not in COMMANDS:
        print(f"{name}: no such command\n\n{USAGE}" if name else USAGE, file=sys.stderr)
        raise SystemExit(2)
    return name


def read_arguments() -> list[str]:
    """Return the arguments after the command."""
    arguments = [text.replace(f"{CLASSIFIER}=", "classifier=") for text in sys.argv[1:]]
    return arguments[2:] if arguments[:1] == ["--config-name"] else arguments


def config_dir() -> str | None:
    """Return the folder that ``--config-dir`` names, or None if the option is not given."""
    folder: str | None = get_args_parser().parse_intermixed_args(sys.argv[1:]).config_dir
    return folder


def give_to_hydra() -> None:
    """Rewrite ``sys.argv`` for Hydra: options first, then overrides with their texts quoted."""
    options = sys.argv[1:]
    overrides = get_args_parser().parse_intermixed_args(options).overrides
    for text in overrides:
        options.remove(text)
    sys.argv[1:] = options + [_quote_override(text) for text in overrides]


def _quote_override(text: str) -> str:
    """Return an override as Hydra reads it."""
    if "=" not in text:
        return text
    text = re.sub("^classifier=", f"{CLASSIFIER}=", text)
    # Bash does so behind out=, and not behind data.data_dir=.
    text = re.sub(r"(?<=[=,[])~(?=/)", lambda _: str(expand_path("~")), text)
    key, _, value = text.partition("=")
    try:
        parsed = OverridesParser.create().parse_override(text).value()
    except (
        HydraException
    ):  # Hydra reports the error later, but a name such as Flöte or epoch=3.ckpt
        # photo (1).png is a name, too; a list, a dictionary or a Hydra function is not.
        is_name = "," not in value and not re.match(r"[\[{]|\w+\(", value)
        return f"{key}={quote_for_hydra(value)}" if is_name else text
    choices = parsed.list if isinstance(parsed, ChoiceSweep) else [parsed]
    if key == "augment" and any(isinstance(each, list) and "auto" in each for each in choices):
        raise UserError(f"{text}: expected auto alone, or a list without it")  # Hydra would drop it
    is_group = any(Path(folder, key).is_dir() for folder in (CONFIGS, config_dir() or CONFIGS))
    if is_group and isinstance(parsed, int | float | None):
        return f"{key}='{format_value(parsed)}'"  # quoted, or Hydra would not list the options
    return text
