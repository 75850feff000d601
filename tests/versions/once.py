"""A plugin of pytest: of a test with parameters, the first case alone."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Last: the first of those that no marker has deselected."""
    first: dict[str, Any] = {}
    for item in items:
        first.setdefault(item.nodeid.split("[")[0], item)
    others = [item for item in items if first[item.nodeid.split("[")[0]] is not item]
    config.hook.pytest_deselected(items=others)
    items[:] = first.values()
