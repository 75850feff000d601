"""Compiled code of an earlier process, in one file (torch.compiler.save_cache_artifacts)."""

from __future__ import annotations

import os

import torch

from rocm_passes.diffusers_pipeline.report import Report
from rocm_passes.errors import OptionError, RocmPassesError


def load(path: object, report: Report) -> None:
    """Fill torch's compile caches from the file, if it exists, and remember the path for saving.

    A file of other versions of torch or of this package does no harm: its keys do not match.
    Raises OptionError on what is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise OptionError.value("cache_artifacts", "a file path", path)
    report.artifacts_path = os.fspath(path)
    if not os.path.exists(report.artifacts_path):
        report.add(
            "cache", "cache", "no file yet; report.save_cache_artifacts() writes it after a run"
        )
        return
    with open(report.artifacts_path, "rb") as file:
        info = torch.compiler.load_cache_artifacts(file.read())
    if info is None:
        report.add(
            "cache", "cache", "the file holds no readable artifacts; everything is compiled anew"
        )
        return
    report.add("cache", "cache", f"{sum(map(len, info.artifacts.values()))} artifacts were loaded")


def save(report: Report) -> None:
    """After a warm run: write the file, or say why there is nothing to write."""
    try:
        report.add("cache", "cache", f"{report.save_cache_artifacts()} artifacts were saved")
    except RocmPassesError as error:
        report.add("cache", "cache", str(error))
