"""Single files of released packages, out of their wheels on the package index: nothing is installed."""

import ast
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

_OUT_OF_THE_WHEEL = """
import json, subprocess, sys, zipfile
from pip._internal.network.lazy_wheel import LazyZipOverHTTP
from pip._internal.network.session import PipSession
which = ["--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:", "--quiet", "--report", "-"]
asked = subprocess.run([sys.executable, "-m", "pip", "install", *which, sys.argv[1]], capture_output=True, check=True)
with LazyZipOverHTTP(json.loads(asked.stdout)["install"][0]["download_info"]["url"], PipSession()) as wheel:
    files = zipfile.ZipFile(wheel)
    json.dump({name: files.read(name).decode() for name in sys.argv[2:]}, sys.stdout)
"""
"""pip itself reads files of a wheel so, by ranges: the whole may be half a gigabyte."""


def read(requirement: str, *names: str) -> dict[str, str]:
    """The text of files of a wheel; the test skips where it cannot be had."""
    asked = subprocess.run(
        [sys.executable, "-c", _OUT_OF_THE_WHEEL, requirement, *names], capture_output=True, text=True
    )
    if asked.returncode:
        pytest.skip(f"{requirement} cannot be read from the package index: {asked.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(asked.stdout))


def defined(text: str, names: Sequence[str], around: Mapping[str, Any]) -> dict[str, Any]:
    """Some classes and functions of a module, or of a class of it, made by themselves with what they need `around`."""
    found = {node.name: node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    place: dict[str, Any] = {**around}
    for name in names:
        exec(compile(ast.Module([found[name]], []), f"<{name}>", "exec"), place)
    return place
