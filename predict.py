"""Tell what pictures show, for the base and with an adapter (images="my/*.png" adapter=FOLDER)."""

from lora_mnist.cli.entry import run_command
from lora_mnist.cli.main import run_entry

if __name__ == "__main__":
    run_entry(run_command, "predict")
