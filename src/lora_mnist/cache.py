"""What the jobs of a sweep, which share a process, need to find out only once."""

from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """Values by all that they depend on: complete when they are kept, and never changed.

    Args:
        limit: how many values to keep; the oldest makes room.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: dict[str, T] = {}

    def get(self, key: str) -> T | None:
        """The value for ``key``, if there is one."""
        return self._values.get(key)

    def keep(self, key: str, value: T) -> T:
        """Keep ``value`` from now on, and return it."""
        self._values.pop(key, None)
        while len(self._values) >= self._limit:
            self._values.pop(next(iter(self._values)))
        self._values[key] = value
        return value
