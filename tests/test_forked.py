"""The processes that tests fork: one whose zygote has ended is refused at once, not waited for."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests import forked

#: Each ends with its last words on its error output, at another moment.
ENDS = {
    "while it imports": "sys.exit('no memory')",
    "before it accepts": "listener.bind(sys.argv[1]); listener.listen(); sys.exit('no memory')",
    "before it answers": """
listener.bind(sys.argv[1])
listener.listen()
listener.accept()
sys.exit('no memory')
""",
}


@pytest.mark.parametrize("moment", ENDS)
def test_a_zygote_that_ended_is_noticed_at_once(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = "import socket, sys; listener = socket.socket(socket.AF_UNIX)"
    monkeypatch.setattr(forked, "ZYGOTE", (sys.executable, "-c", f"{begin}\n{ENDS[moment]}"))
    monkeypatch.setenv(forked.FOLDER, str(tmp_path))
    before = time.monotonic()
    # The first starts the zygote; the second finds one that has ended, as another worker would.
    for _ in range(2):
        with pytest.raises(ChildProcessError, match=r"has ended, with:\nno memory"):
            forked.run([sys.executable, "-c", "pass"])
    assert time.monotonic() - before < 1.5
