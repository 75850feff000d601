"""Shows the package's version beside the site's name, and lists pages that the navigation lacks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)


def on_config(config: Any) -> Any:
    package = Path(config.config_file_path).parent / "rocm_passes" / "__init__.py"
    found = VERSION.search(package.read_text(encoding="utf-8"))
    assert found is not None, f"{package} has no version"
    config.site_name = f"{config.site_name} {found[1]}"
    root = Path(config.docs_dir)
    listed = json.dumps(config.nav)
    pages = sorted(str(path.relative_to(root)) for path in root.rglob("*.md"))
    others = [page for page in pages if f'"{page}"' not in listed]
    if others:
        config.nav = [*config.nav, {"More": others}]
    return config
