"""Arguments of the data modules: what they may be, and what to say when they are something else."""

from collections.abc import Sequence
from typing import Any

# Below it, normalised pixels are too large to train a network on.
_SMALLEST_STD = 1e-6
#: What torch's generators take.
MOST_SEED = 2**63 - 1
# Of images and whatever else is counted.
_MOST = 2**31 - 1
# More class names than this would bury a message.
_NAMED = 12


def checked_int(name: str, value: Any, minimum: int, maximum: int = _MOST) -> int:
    """``value``, if it is an integer from ``minimum`` to ``maximum``.

    Raises:
        ValueError: naming the argument ``name``, if it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name}={value}: expected an integer >= {minimum}")
    if value > maximum:
        raise ValueError(f"{name}={value}: expected an integer from {minimum} to {maximum}")
    return value


def checked_share(name: str, value: Any) -> float:
    """``value``, if it is a number from 0 to below 1.

    Raises:
        ValueError: naming the argument ``name``, if it is not.
    """
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name}={value}: expected a number from 0 to below 1")
    return float(value)


def checked_size(name: str, value: Any) -> int | float:
    """``value``, if it is a number of images (an integer) or a share of them, below 1.

    Raises:
        ValueError: naming the argument ``name``, if it is neither.
    """
    if not _is_number(value) or value < 0 or (isinstance(value, float) and not value < 1):
        raise ValueError(
            f"{name}={value}: expected a number of images or a share from 0 to below 1"
        )
    return int(value) if value == 0 else value


Channelwise = float | list[float] | None


def checked_mean(value: Any, channels: int) -> Channelwise:
    """A number from 0 to 1, or one for each channel; ``None`` stands for the images' own.

    Raises:
        ValueError: if ``value`` is something else.
    """
    if not all(_is_number(v) and 0 <= v <= 1 for v in _each(value, channels)):
        raise ValueError(f"mean={value}: expected a number from 0 to 1{_or_a_list(channels)}")
    return _channelwise(value)


def checked_std(value: Any, channels: int) -> Channelwise:
    """A positive number, or one for each channel; ``None`` stands for the images' own.

    Raises:
        ValueError: if ``value`` is something else.
    """
    allowed = (_SMALLEST_STD, 1 / _SMALLEST_STD)
    each = _each(value, channels)
    if not all(_is_number(v) and allowed[0] <= v <= allowed[1] for v in each):
        raise ValueError(
            f"std={value}: expected a number > 0 (at least {_SMALLEST_STD}){_or_a_list(channels)}"
        )
    return _channelwise(value)


def resolve_target(target: Any, classes: Sequence[str]) -> list[int] | None:
    """The numbers of the class or classes that ``target`` names; ``None`` for all of them.

    Args:
        target: a class, or a list of classes, each by name or by number. A name goes before a
            number: with the classes 1, 10 and 2 the target 10 is the class of that name.
        classes: the names, in the order of the labels.

    Raises:
        ValueError: if ``target`` names no class, or one twice.
    """
    if target is None:
        return None
    is_list = isinstance(target, Sequence) and not isinstance(target, str)
    targets = [_class_number(t, classes) for t in (target if is_list else [target])]
    if not targets or None in targets:
        named = ", ".join(classes) if len(classes) <= _NAMED else f"{classes[0]}, {classes[1]}, ..."
        words = (
            f" ({named})"
            if any(isinstance(t, str) for t in (target if is_list else [target]))
            else ""
        )
        raise ValueError(
            f"target={target}: expected null, a class from 0 to {len(classes) - 1} or a list of "
            f"them, by number or by name{words}"
        )
    if len(set(targets)) < len(targets):
        raise ValueError(f"target={target}: expected each class once")
    return [t for t in targets if t is not None]


def _class_number(target: Any, classes: Sequence[str]) -> int | None:
    if type(target) not in (int, str):
        return None
    if str(target) in classes:
        return classes.index(str(target))
    return target if isinstance(target, int) and 0 <= target < len(classes) else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _each(value: Any, channels: int) -> list[Any]:
    """The values that have to be checked: none, one, or one for each channel."""
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value]
    return list(value) if len(value) == channels else [None]


def _channelwise(value: Any) -> Channelwise:
    if value is None or _is_number(value):
        return value  # type: ignore[no-any-return]
    return list(value) if len(value) > 1 else value[0]


def _or_a_list(channels: int) -> str:
    return f", or {channels} of them, one a channel" if channels > 1 else ""
