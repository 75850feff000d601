"""Where a site's source line can be read: installed libraries on GitHub, at the installed version.

The ledger names an installed file relative to the folder of its package
(`diffusers/models/attention.py:12`). A file of the user's own has no address that another reader
of the page could open, so it gets none.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

#: Package -> the address of its folder at a version.
REPOSITORIES = {
    "diffusers": "https://github.com/huggingface/diffusers/blob/v{version}/src/diffusers",
    "transformers": "https://github.com/huggingface/transformers/blob/v{version}/src/transformers",
}


def address(location: str, environment: Mapping[str, Any]) -> str | None:
    """The line's address, or None where there is none."""
    path, _, line = location.rpartition(":")
    package, _, rest = path.partition("/")
    version = environment.get(package)
    # A development version has no tag.
    if package not in REPOSITORIES or not version or "dev" in str(version) or not rest:
        return None
    return f"{REPOSITORIES[package].format(version=version)}/{rest}#L{line}"


def shown(location: str, environment: Mapping[str, Any]) -> str:
    """The end of the location as HTML, with a link where it has an address."""
    where = escape("/".join(location.split("/")[-2:])) or "unknown place"
    found = address(location, environment)
    return where if found is None else f'<a href="{escape(found)}" rel="noreferrer">{where}</a>'
