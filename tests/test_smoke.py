"""What a whole run of `smoke` leaves, and what the workflow makes of it; all read the one run that workers share."""

import re
import shutil
import subprocess

import pandas as pd
import pytest

from hyperdapo.evidence.calibration import SCORES
from hyperdapo.evidence.gaps import COLUMNS, MEANS
from hyperdapo.execution.strategies import AS_TIMED, STRATEGIES
from hyperdapo.params import load
from hyperdapo.policy.rivals import RIVALS
from hyperdapo.sequential.iteration import BOOSTING
from smoke import Run, assert_whole

pytestmark = pytest.mark.slow


def test_every_stage_is_rendered_without_an_error_cell(smoke: Run) -> None:
    assert_whole(smoke, len(load("smoke").assets))
    for name in ("numbers.tex", "manifest.json", "tables/metrics.csv", "tables/learning_gap.csv"):
        assert (smoke.outputs / "smoke" / name).stat().st_size > 0


def test_tables_have_the_columns_that_others_read(smoke: Run) -> None:
    metrics = pd.read_csv(smoke.outputs / "smoke/tables/metrics.csv")
    assert list(metrics.columns[:7]) == ["asset", "strategy", "metric", "value", "ci_low", "ci_high", "blocks"]
    assert set(metrics.strategy) == {*STRATEGIES, *load("smoke").training.algorithms, "untrained", *RIVALS, BOOSTING}
    fills = pd.read_csv(smoke.outputs / "smoke/tables/fill_calibration.csv")
    assert tuple(fills.columns[:7]) == SCORES and set(fills.asset) == set(load("smoke").assets)
    laws = pd.read_parquet(smoke.data / "smoke" / "BTC" / "laws.parquet").set_index("parameter")
    assert {"lambda_bps", "beta", "alpha", "queue_exponent"} <= set(laws.index)
    for asset in load("smoke").assets:
        assumed = pd.read_parquet(smoke.data / "smoke" / asset / "sensitivity.parquet")["assumption"]
        assert (AS_TIMED in set(assumed)) == (asset in load("smoke").inference.timed)
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
    slice_ = next((smoke.data / "slices" / "BTC").glob("**/*.zst"))
    adapter = next((data / "models" / "ETH" / "dapo").glob("seed_*/adapter_model.safetensors"))
    lost = {path: tmp_path / path.name for path in (slice_, adapter, data / "ETH" / "laws.parquet")}
    for path, away in lost.items():
        path.rename(away)
    said = smoke.finish("--dry-run")
    for path, away in lost.items():
        away.rename(path)
    assert re.search(r"^01_download BTC: slices of .* are lost or empty$", said, re.M)
    assert re.search(r"^05_train ETH: models/ETH/dapo/.*adapter_model.* is lost or cut$", said, re.M)
    assert re.search(r"^03_features ETH: ETH/laws\.parquet is lost or cut$", said, re.M)
    assert re.search(r"^02_preprocess BTC: reads what a stage before it makes anew$", said, re.M)
    assert not re.search(r"^0[12]_\w+ ETH", said, re.M) and "Traceback" not in said
    assert smoke.finish("--dry-run").startswith("nothing to run")


def test_a_forced_stage_runs_again_with_what_depends_on_it(smoke: Run) -> None:
    said = smoke.finish("--dry-run", "--force", "08").splitlines()
    units = {f"{job} {asset}" for job in ("08_backtest", "08_render") for asset in load("smoke").assets}
    assert {line.split(":")[0] for line in said} == units | {"09_significance", "09_render"}
    assert "08_backtest ETH: forced" in said


def test_changed_parameters_are_another_run_which_takes_over_what_they_do_not_decide(smoke: Run, tmp_path) -> None:
    (tmp_path / "my.yaml").write_text("inference: {latency_decisions: 6}")
    said = dict(
        line.split(": ", 1) for line in smoke.finish("--dry-run", "--params", f"{tmp_path}/my.yaml").splitlines()
    )
    computed = {job for job, reason in said.items() if "_render" not in job and reason != "taken over from smoke"}
    later = {f"{stage} {asset}" for stage in ("07_inference", "08_backtest") for asset in load("smoke").assets}
    assert computed == later | {"09_significance"} and said["05_train BTC"] == "taken over from smoke"
    assert smoke.finish("--dry-run").startswith("nothing to run")


def test_latex_accepts_numbers_and_tables(smoke: Run, tmp_path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex: apt-get install texlive-latex-base texlive-latex-recommended texlive-science")
    folder = smoke.outputs / "smoke"
    tables = "\n".join(rf"\input{{{path}}}\clearpage" for path in sorted((folder / "tables").glob("*.tex")))
    macro = re.search(r"\\newcommand\{(\\\w+)\}", (folder / "numbers.tex").read_text())[1]
    packages = r"\usepackage{booktabs,longtable,graphicx,amsmath,siunitx}"
    body = rf"\input{{{folder / 'numbers.tex'}}} {macro} {tables}"
    (tmp_path / "all.tex").write_text(rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-3000:]
