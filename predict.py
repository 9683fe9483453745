"""Tell what pictures show, for the base and with an adapter (images="my/*.png" adapter=FOLDER)."""

from lora_mnist.cli.main import run_command

if __name__ == "__main__":
    run_command("predict")
