"""Tiny text encoders."""

from __future__ import annotations

from .case import Case

TEXT_ENCODERS: tuple[Case, ...] = ()
