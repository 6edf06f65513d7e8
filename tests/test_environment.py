"""One lock for pip, conda and the integration machine; make builds and repairs what it needs."""

import re
import shutil
import subprocess
import sys

import yaml

from conftest import REPOSITORY


def _pins() -> dict[str, str]:
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    return {match[1]: match[2] for line in lines if (match := re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([^ ;]+)", line))}


def test_every_package_is_pinned_exactly() -> None:
    lines = [line for line in (REPOSITORY / "requirements.lock").read_text().splitlines() if re.match(r"\w", line)]
    assert len(_pins()) <= len(lines) and all("==" in line for line in lines)
    fixed = ["jupyterlab", "papermill", "torch", "transformers", "peft", "trl", "bitsandbytes", "pandas", "matplotlib"]
    assert {*fixed, "seaborn", "plotly", "scipy", "tardis-dev"} <= set(_pins())
    assert _pins()["torch"] == "2.13.0"


def test_the_lock_installs_with_and_without_cuda() -> None:
    assert not [name for name in _pins() if name.startswith(("nvidia-", "cuda-", "triton"))], "torch picks its own"


def test_conda_installs_nothing_but_the_lock() -> None:
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    names = [re.split("[=<>]", item)[0] if isinstance(item, str) else item for item in environment["dependencies"]]
    assert names == ["python", "pip", {"pip": ["-r requirements.lock"]}]


def test_the_lock_covers_what_pyproject_asks_for() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    asked = re.findall(
        r'"([a-z][\w-]*)(?:==[\w.]+)?"', text[text.index("dependencies = [") : text.index("[project.scripts]")]
    )
    assert not set(asked) - set(_pins())


def test_make_help_lists_the_targets() -> None:
    shown = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert {"setup", "reproduce", "test", "lint", "lab", "verify", "clean"} <= {
        line.split()[0] for line in shown.splitlines()
    }


def test_a_damaged_environment_is_noticed(tmp_path) -> None:
    check = tmp_path / ".ci" / "check_env.py"
    check.parent.mkdir()
    shutil.copy(REPOSITORY / ".ci" / "check_env.py", check)
    for name in ("requirements.lock", "requirements-model.lock"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    assert subprocess.run([sys.executable, check], check=False).returncode == 0
    with (tmp_path / "requirements.lock").open("a") as lock:
        lock.write("no-such-package==1.0\npandas==0.1\n")
    found = subprocess.run([sys.executable, check], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "no-such-package is not installed" in found.stderr and "pandas is" in found.stderr
