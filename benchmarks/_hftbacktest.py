"""The peer hftbacktest, in a virtual environment of its own (`.peers/`, not in git): its packages never meet ours."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HOME = HERE / ".peers" / "hftbacktest"
PINNED = "hftbacktest==2.4.4"


def run(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script of this folder among the peer's packages, and return the JSON object that it prints."""
    command = [str(_python()), str(HERE / script), *arguments]
    result: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return result


def _python() -> Path:
    """The peer's interpreter. Its environment is made where there is none, or one that is not whole or not `PINNED`."""
    python, whole = HOME / "bin" / "python", HOME / "holds"
    if python.exists() and whole.exists() and whole.read_text() == PINNED:
        return python
    print(f"making {HOME} with {PINNED} (about half a minute, 1 GB) ...", file=sys.stderr, flush=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", PINNED]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(HOME)], check=True)
        subprocess.run(install, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(
            f"{error}\n{PINNED} cannot be installed. This benchmark compares with it, so it has not run. "
            "Mend the network, or the package index that pip is set to, and run it again."
        )
    whole.write_text(PINNED)
    return python
