"""What the benchmark needs beside the base install."""

from importlib import import_module

from lora_mnist.errors import missing_extra


def require_extra(script: str, extra: str, *modules: str) -> None:
    """Ask for an extra before the first measurement, not in the middle of a table.

    Raises:
        UserError: if one of its ``modules`` is missing.
    """
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise missing_extra(f"scripts/benchmark/{script}", extra, error) from error
