"""What a benchmark's file to share may hold: no absolute path, no host or user name, no argument of
the script.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from pathlib import Path
from typing import Any

#: An absolute path of two or more parts, on Unix or on Windows.
PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[\\/][^\s\\/:\"'()<>,;]+){2,}")
SHORTEST_NAME = 3


def without_private(value: Any) -> Any:
    """The same document, every string in it without what is private."""
    if isinstance(value, dict):
        return {_cleaned(str(key)): without_private(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_private(item) for item in value]
    return _cleaned(value) if isinstance(value, str) else value


def _cleaned(text: str) -> str:
    text = PATH.sub(lambda found: _relative(found.group()), text)
    for name, stand_in in ((_host(), "<host>"), (_user(), "<user>")):
        if len(name) >= SHORTEST_NAME:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", stand_in, text)
    return text


def _relative(path: str) -> str:
    """From the working folder or from site-packages on; of any other path the last part."""
    here = os.getcwd() + os.sep
    if path.startswith(here):
        return path.removeprefix(here)
    _, packages, inside = path.replace("\\", "/").partition("/site-packages/")
    return inside if packages else path.replace("\\", "/").rpartition("/")[2]


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this user's number
        return Path.home().name
