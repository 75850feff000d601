"""A file to share names no path of the machine, no host, no user."""

from __future__ import annotations

import json
import os

import pytest

from rocm_passes.bench import share


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share.socket, "gethostname", lambda: "build7.example.org")
    monkeypatch.setattr(share.getpass, "getuser", lambda: "alice")


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("/home/alice/models/unet.py:12 in forward", "unet.py:12 in forward"),
        (
            'File "/opt/venv/lib/python3.11/site-packages/diffusers/models/unet.py"',
            'File "diffusers/models/unet.py"',
        ),
        (f"{os.getcwd()}/models/block.py:3", "models/block.py:3"),
        (r"C:\Users\alice\model.py", "model.py"),
        ("ran on build7 by alice", "ran on <host> by <user>"),
        ("malice is no name", "malice is no name"),
        (
            "mean over 3/4 of [1, 2]; 5 GB/s and rotary/half",
            "mean over 3/4 of [1, 2]; 5 GB/s and rotary/half",
        ),
    ],
)
def test_strings(text: str, shared: str) -> None:
    assert share.without_private(text) == shared


def test_every_string_of_a_document_is_cleaned() -> None:
    document = {
        "/home/alice/x.py": [{"at": "/home/alice/y.py", "ms": 1.5, "ok": True}, None, ("build7",)]
    }
    found = share.without_private(document)
    assert found == {"x.py": [{"at": "y.py", "ms": 1.5, "ok": True}, None, ["<host>"]]}
    assert "alice" not in json.dumps(found)


def test_a_user_without_a_name_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setattr(share.getpass, "getuser", nameless)
    assert share.without_private("plain") == "plain"
