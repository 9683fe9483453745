from lora_mnist.cache import Cache


def test_gives_what_was_kept() -> None:
    cache, value = Cache[list[int]](limit=2), [1]
    assert cache.get("a") is None
    assert cache.keep("a", value) is value
    assert cache.get("a") is value
    assert cache.get("b") is None


def test_the_oldest_makes_room() -> None:
    cache = Cache[int](limit=2)
    for key, value in {"a": 1, "b": 2, "c": 3}.items():
        cache.keep(key, value)
    assert [cache.get(key) for key in "abc"] == [None, 2, 3]


def test_what_is_kept_again_is_the_newest() -> None:
    cache = Cache[int](limit=2)
    for key, value in [("a", 1), ("b", 2), ("a", 3), ("c", 4)]:
        cache.keep(key, value)
    assert [cache.get(key) for key in "abc"] == [3, None, 4]
