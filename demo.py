"""A page to draw on: base and adapted network side by side, the adapter on a slider."""

from lora_mnist.cli.main import run_command

if __name__ == "__main__":
    run_command("demo")
