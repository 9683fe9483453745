"""Classes by number and by name."""

from collections.abc import Sequence

#: A class, by number or by name, or several.
Target = int | str | Sequence[int | str]


def class_numbers(target: Target, classes: Sequence[str]) -> list[int]:
    """The numbers of the class or classes that ``target`` names.

    Names come before numbers: with the classes 1, 10 and 2 the target 10 is the class named 10.
    ValueError, if ``target`` names no class, or one twice.
    """
    numbers = {str(number): number for number in range(len(classes))}
    numbers |= {name: number for number, name in enumerate(classes)}
    chosen: list[int] = []
    names = target if isinstance(target, Sequence) and not isinstance(target, str) else [target]
    for one in names:
        if str(one) not in numbers:
            raise ValueError(
                f"target={target}: expected null, a class from 0 to {len(classes) - 1} or a list "
                f"of them, by number or by name, such as {', '.join(classes[:12])}"
            )
        chosen.append(numbers[str(one)])
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"target={target}: expected each class once, and at least one")
    return chosen
