"""What ``--help`` prints: of the program ``lora-mnist``, and of a command before its keys."""

from omegaconf import OmegaConf

from lora_mnist import __version__
from lora_mnist.project import CONFIGS

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


def print_groups(name: str) -> None:
    """How ``--help`` begins. Hydra's own takes a second: it copies all groups for each one."""
    help_of = OmegaConf.select(OmegaConf.load(CONFIGS / f"{name}.yaml"), "hydra.help")
    if help_of is not None:
        print(help_of.header)
    print("Groups; GROUP=NAME chooses:")
    for folder in sorted(CONFIGS.rglob("*/")):
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        print(f"  {folder.relative_to(CONFIGS).as_posix()}: {', '.join(names)}")
    print("\nKeys; KEY=VALUE sets:")
