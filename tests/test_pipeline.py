"""The whole pipeline in `smoke`, as a user runs it: through the command, Snakemake and papermill."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from conftest import REPOSITORY
from hyperdapo import workflow
from hyperdapo.evidence.gaps import COLUMNS, MEANS
from hyperdapo.evidence.verification import compare
from hyperdapo.execution.strategies import STRATEGIES
from hyperdapo.execution.validation import SCORES
from hyperdapo.params import load

HYPERDAPO = (sys.executable, "-m", "hyperdapo.cli")
PER_ASSET = len(workflow.STAGES) - len(workflow.ACROSS_ASSETS)


class Run:
    """One place of data and outputs, and the command run in it."""

    def __init__(self, place: Path) -> None:
        self.data, self.outputs = place / "data", place / "outputs"
        where = {"HYPERDAPO_DATA": str(self.data), "HYPERDAPO_OUTPUTS": str(self.outputs)}
        self.environment = os.environ | where | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [*HYPERDAPO, "run", "--profile", "smoke", "--cores", "2", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=REPOSITORY, env=self.environment, start_new_session=True, **pipes)

    def finish(self, *arguments: str) -> str:
        """Run to the end and return what was printed; the run must succeed."""
        process = self.start(*arguments)
        printed = process.communicate()[0]
        assert process.returncode == 0, printed[-6000:]
        return printed

    def renders(self) -> list[Path]:
        return sorted((self.outputs / "smoke" / "notebooks").glob("*.ipynb"))

    def times(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in self.renders()}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Run:
    run = Run(tmp_path_factory.mktemp("smoke"))
    run.finish()
    return run


def _assert_whole(run: Run, assets: int) -> None:
    assert len(run.renders()) == PER_ASSET * assets + len(workflow.ACROSS_ASSETS)
    for path in run.renders():
        outputs = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.output_type == "error"], path.name
        images = [output for output in outputs if "image/png" in output.get("data", {})]
        assert images, f"{path.name} shows no figure"


def test_every_stage_is_rendered_without_an_error_cell(smoke: Run) -> None:
    _assert_whole(smoke, len(load("smoke").assets))
    for name in ("numbers.tex", "manifest.json", "tables/metrics.csv", "tables/learning_gap.csv"):
        assert (smoke.outputs / "smoke" / name).stat().st_size > 0


def test_tables_have_the_columns_that_others_read(smoke: Run) -> None:
    metrics = pd.read_csv(smoke.outputs / "smoke/tables/metrics.csv")
    assert list(metrics.columns[:7]) == ["asset", "strategy", "metric", "value", "ci_low", "ci_high", "blocks"]
    assert set(metrics.strategy) == {*STRATEGIES, *load("smoke").training.algorithms, "untrained", "boosting"}
    fills = pd.read_csv(smoke.outputs / "smoke/tables/fill_calibration.csv")
    assert tuple(fills.columns[:7]) == SCORES and set(fills.asset) == set(load("smoke").assets)
    laws = pd.read_parquet(smoke.data / "smoke" / "BTC" / "laws.parquet").set_index("parameter")
    assert {"lambda_bps", "beta", "alpha", "queue_exponent"} <= set(laws.index)
    gaps = pd.read_csv(smoke.outputs / "smoke/tables/learning_gap.csv")
    assert list(gaps.columns) == COLUMNS
    means = pd.read_csv(smoke.outputs / "smoke/tables/learning_gap_over_seeds.csv")
    assert list(means.columns) == MEANS and (means.seeds == len(load("smoke").training.seeds)).all()
    assert (gaps.oracle_bps >= gaps[["untrained_bps", "best_fixed_bps", "trained_bps"]].max(axis=1) - 1e-9).all()


def test_clipping_acts_in_training(smoke: Run) -> None:
    for asset in load("smoke").assets:
        log = pd.read_csv(smoke.data / "smoke/models" / asset / "dapo/training_log.csv")
        assert log.clip_fraction.max() > 0, "one update per rollout, or no learning: the ratio never left 1"


def test_a_finished_run_is_not_run_again(smoke: Run) -> None:
    before = smoke.times()
    smoke.finish()
    assert smoke.times() == before


def test_a_lost_file_makes_the_right_stage_run_again(smoke: Run, tmp_path) -> None:
    data = smoke.data / "smoke"
    slice_ = next((data / "BTC" / "slices").glob("**/*.zst"))
    adapter = next((data / "models" / "ETH" / "dapo").glob("seed_*/adapter_model.safetensors"))
    lost = {path: tmp_path / path.name for path in (slice_, adapter, data / "ETH" / "laws.parquet")}
    for path, away in lost.items():
        path.rename(away)
    said = smoke.finish("--dry-run")
    for path, away in lost.items():
        away.rename(path)
    assert re.search(r"^01_download BTC: slices of .* are lost or empty$", said, re.M)
    assert re.search(r"^05_adapters ETH: an adapter .* is lost or empty", said, re.M)
    assert re.search(r"^03_features ETH: laws\.parquet not there$", said, re.M)
    assert re.search(r"^02_preprocess BTC: reads what a stage before it makes anew$", said, re.M)
    assert not re.search(r"^0[12]_\w+ ETH", said, re.M) and "Traceback" not in said
    assert smoke.finish("--dry-run").startswith("nothing to run")


def test_a_forced_stage_runs_again_with_what_depends_on_it(smoke: Run) -> None:
    said = smoke.finish("--dry-run", "--force", "08").splitlines()
    assert {line.split(":")[0] for line in said} == {"08_backtest BTC", "08_backtest ETH", "09_significance"}
    assert "08_backtest ETH: forced" in said
    of_one = smoke.finish("--dry-run", "--force", "08", "--asset", "ETH")
    assert "08_backtest ETH: forced" in of_one and "BTC" not in of_one


def test_a_changed_parameter_reruns_what_depends_on_it_and_so_does_its_return(smoke: Run, tmp_path) -> None:
    extra = tmp_path / "my.yaml"
    extra.write_text(yaml.safe_dump({"inference": {"latency_decisions": 6}}))
    for more in (["--params", str(extra)], []):
        before = smoke.times()
        smoke.finish(*more)
        changed = {name[:2] for name, stamp in smoke.times().items() if stamp != before[name]}
        assert changed == {"07", "08", "09"}


def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(smoke: Run, tmp_path) -> None:
    other = Run(tmp_path)
    process = other.start()
    deadline = time.monotonic() + 600
    while not list(other.data.glob("smoke/*/features.parquet")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = {name: stamp for name, stamp in other.times().items() if name.startswith("01")}
    assert finished
    other.finish()
    assert {name: other.times()[name] for name in finished} == finished, "a finished stage was done again"

    differences = compare(other.outputs / "smoke", smoke.outputs / "smoke")
    assert differences.same.all(), differences[~differences.same].to_string()
    exact = differences[differences["file"].str.startswith(("tables/", "numbers.tex"))]
    apart = exact[exact["reference"] != exact["measured"]]
    assert len(exact) > 100 and apart.empty, apart


def test_latex_accepts_numbers_and_tables(smoke: Run, tmp_path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex: apt-get install texlive-latex-base texlive-latex-recommended")
    folder = smoke.outputs / "smoke"
    tables = "\n".join(rf"\input{{{path}}}\clearpage" for path in sorted((folder / "tables").glob("*.tex")))
    macro = re.search(r"\\newcommand\{(\\\w+)\}", (folder / "numbers.tex").read_text())[1]
    packages = r"\usepackage{booktabs,longtable,graphicx,amsmath}"
    body = rf"\input{{{folder / 'numbers.tex'}}} {macro} {tables}"
    (tmp_path / "all.tex").write_text(rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_an_endpoint_that_is_down_is_one_clear_error(tmp_path) -> None:
    run, extra = Run(tmp_path), tmp_path / "down.yaml"
    extra.write_text(
        yaml.safe_dump(
            {"assets": ["ETH"], "source": {"kind": "tardis", "endpoint": f"http://127.0.0.1:{_free_port()}/v1"}}
        )
    )
    process = run.start("--params", str(extra))
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 1 and "EndpointError" in printed and "127.0.0.1" in printed
    assert "Traceback" not in printed.split("hyperdapo: ")[-1]


def test_a_stage_before_its_inputs_says_what_makes_them(tmp_path) -> None:
    run = Run(tmp_path)
    command = [*HYPERDAPO, "render", "03_features", str(tmp_path / "out.ipynb"), "--profile", "smoke", "--asset", "ETH"]
    done = subprocess.run(command, env=run.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "MissingInputError" in done.stderr
    assert "hyperdapo run --profile smoke --until 02" in done.stderr


@pytest.fixture
def recorded_endpoint(recordings: Path) -> Iterator[str]:
    port = _free_port()
    command = [*HYPERDAPO, "serve-recordings", str(recordings / "hyperliquid"), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/v1"
    server.terminate()
    server.wait(timeout=30)


def test_the_pipeline_runs_on_a_real_recording(recorded_endpoint: str, tmp_path) -> None:
    run, extra = Run(tmp_path), tmp_path / "real.yaml"
    span = {"from": "2025-09-04T19:46:00Z", "to": "2025-09-04T20:22:00Z"}
    extra.write_text(
        yaml.safe_dump({"assets": ["ETH"], "source": {"kind": "tardis", "endpoint": recorded_endpoint} | span})
    )
    run.finish("--params", str(extra))
    _assert_whole(run, 1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
