"""Fast tests first; a module named here runs after all others, in this order."""

SLOW = ("test_interpreted", "test_bench", "test_example", "test_examples", "test_packaging")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: SLOW.index(item.module.__name__) + 1 if item.module.__name__ in SLOW else 0)
