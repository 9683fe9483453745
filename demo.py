"""A page to draw on: base and adapted network side by side, the adapter on a slider."""

from lora_mnist.cli.entry import run_command
from lora_mnist.cli.main import run_entry

if __name__ == "__main__":
    run_entry(run_command, "demo")
