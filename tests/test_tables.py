"""Tables and numbers: written whole, the same each time, and safe for LaTeX."""

import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from hyperdapo.errors import MissingInputError
from hyperdapo.evidence import contents, tables
from hyperdapo.evidence.convergence import convergence_table, logs_so_far, over_seeds, under_way
from hyperdapo.paths import Paths


@pytest.fixture
def paths(tmp_path, monkeypatch) -> Paths:
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path / "outputs"))
    return Paths("smoke")


def training_log(asset: str = "BTC") -> pd.DataFrame:
    """Four looks of DAPO and of DPO; 90 % of the way from -6 to the best, -3, is -3.3: DAPO at step 4, DPO at 6."""
    steps = np.arange(0, 7)
    frames = []
    for algorithm, reward in {"dapo": [-6.0, -4.0, -3.0, -3.0], "dpo": [-6.0, -5.5, -4.7, -3.2]}.items():
        log = pd.DataFrame({"step": steps, "asset": asset, "algorithm": algorithm, "seed": 0, "heldout_oracle": -2.0})
        log["loss"] = np.nan if algorithm == "dapo" else [np.nan, 1.0, 1.0, 1.0, 0.25, 0.25, 0.25]
        log["heldout_reward"] = log["step"].map(dict(zip([0, 2, 4, 6], reward, strict=True)))
        log["heldout_accuracy"] = log["heldout_reward"] / 10 + 0.7
        frames.append(log)
    return pd.concat(frames, ignore_index=True)


def test_a_table_is_csv_and_booktabs(paths: Paths) -> None:
    costs = [1.23456789012, np.nan]
    frame = pd.DataFrame(
        {"strategy": ["best_fixed", "50 % & more"], "total_cost_bps": costs, "significant": [True, False]}
    )
    shown = tables.save(frame, paths, "one", "A caption with 5 % & an _underscore_")
    assert pd.read_csv(paths.tables / "one.csv")["total_cost_bps"].iloc[0] == 1.23456789012
    text = (paths.tables / "one.tex").read_text()
    assert r"\toprule" in text and r"50 \% \& more" in text and "Total cost (bps)" in text and r"\_underscore\_" in text
    assert "1.23" in shown.data and "yes" in shown.data and "tab:one" in text


def test_a_long_table_breaks_across_pages_and_is_shown_in_part(paths: Paths) -> None:
    frame = pd.DataFrame({"row": [f"r{i}" for i in range(60)], "value": np.arange(60.0)})
    shown = tables.save(frame, paths, "long", "Long")
    text = (paths.tables / "long.tex").read_text()
    assert r"\begin{longtable}{lr}" in text and r"\endhead" in text and "r59" in text
    assert contents.untrue_cells(paths.tables / "long.tex") == []
    assert "first 24 of 60 rows" in shown.data and "r59" not in shown.data


def test_a_table_that_nobody_prints_is_csv_alone(paths: Paths) -> None:
    for count in (tables.PRINTED, tables.PRINTED + 1):
        tables.save(pd.DataFrame({"cost_bps": np.ones(count)}), paths, f"of_{count}", "Many")
    assert sorted(path.name for path in paths.tables.iterdir()) == ["of_400.csv", "of_400.tex", "of_401.csv"]


def test_an_instant_is_a_date_a_duration_is_not_and_rounding_is_nothing(paths: Paths) -> None:
    frame = pd.DataFrame({"begins_ns": [1_754_006_400_288_545_792], "lasts_ns": [5], "difference_bps": [-7.2e-18]})
    shown = tables.save(frame, paths, "times", "Times").data
    assert "Begins (UTC)" in shown and "2025-08-01 00:00:00" in shown and "Lasts (ns)" in shown and "e-18" not in shown
    assert contents.untrue_cells(paths.tables / "times.tex") == []


def test_a_last_cell_may_be_empty(paths: Paths) -> None:
    tables.save(pd.DataFrame({"cost_bps": [1.5, 2.5], "note": ["", "few blocks"]}), paths, "notes", "Notes")
    assert contents.untrue_cells(paths.tables / "notes.tex") == []
    table = paths.tables / "notes.tex"
    table.write_text(table.read_text().replace("1.50", "1.40"))
    assert len(contents.untrue_cells(table)) == 1


def test_an_empty_table_says_so(paths: Paths) -> None:
    shown = tables.save(pd.DataFrame({"world": []}), paths, "none", "Studies")
    assert "Studies: nothing here" in shown.data and (paths.tables / "none.csv").read_text() == "world\n"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
@pytest.mark.parametrize("rows", [2, 60])
def test_whatever_a_table_holds_compiles(tmp_path, rows: int) -> None:
    text = r"& % $ # _ { } ~ ^ \ § – − ± ≤ ≥ ∞"
    table = tables.latex(pd.DataFrame({text: [text] * rows, "value": [-np.inf] * rows}), text, "tab:any")
    packages = r"\documentclass{article}\usepackage{booktabs,longtable}"
    (tmp_path / "any.tex").write_text(f"{packages}\\begin{{document}}{table}\\end{{document}}", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "any.tex"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert printed.returncode == 0, printed.stdout.decode(errors="replace")[-1000:]


def test_a_named_index_becomes_columns(paths: Paths) -> None:
    tables.save(pd.DataFrame({"a": [1.0]}, index=pd.Index(["x"], name="key")), paths, "one", "One")
    assert list(tables.read(paths, "one", "06_convergence").columns) == ["key", "a"]
    with pytest.raises(MissingInputError, match="--until 06"):
        tables.read(paths, "absent", "06_convergence")


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("total_cost_bps", "Total cost (bps)"),
        ("twap", "TWAP"),
        ("ci_low", "CI low"),
        ("elapsed_s", "Elapsed (s)"),
        ("s", "S"),
    ],
)
def test_headings_name_the_unit(column: str, text: str) -> None:
    assert tables.heading(column) == text


def test_rounding_keeps_what_would_read_zero_visible() -> None:
    assert tables.rounded([1.234, -0.5, np.nan]) == ["1.23", "−0.50", "–"]
    assert tables.rounded([12.0, 0.000012]) == ["12.00", "1.2e−05"]
    assert tables.rounded([1200.0, 3.0]) == ["1,200", "3"]
    assert tables.rounded([np.inf, -np.inf, -0.0]) == ["∞", "−∞", "0"]


def test_convergence_measures_all_algorithms_at_one_level() -> None:
    table = convergence_table(training_log()).set_index("algorithm")
    assert table["steps_to_level"].tolist() == [4.0, 6.0]
    assert np.isnan(table.loc["dapo", "loss_decrease"]) and table.loc["dpo", "loss_decrease"] == 0.75
    assert table.loc["dapo", "regret_decrease"] == 0.75 and table.loc["dpo", "regret_decrease"] == pytest.approx(0.7)


def test_a_level_that_is_never_reached_has_no_step() -> None:
    log = training_log()
    log.loc[log["algorithm"] == "dpo", "heldout_reward"] -= 1.0
    assert np.isnan(convergence_table(log).set_index("algorithm").loc["dpo", "steps_to_level"])


def test_seeds_are_summed_up_by_mean_and_range() -> None:
    seeds = [training_log().assign(seed=seed) for seed in (0, 1)]
    seeds[1].loc[seeds[1]["step"] == 6, "heldout_reward"] -= 0.5
    found = over_seeds(convergence_table(pd.concat(seeds))).set_index("algorithm").loc["dapo"]
    assert found["seeds"] == 2 and found["last_reward_bps"] == -3.25
    assert (found["last_reward_bps_lowest"], found["last_reward_bps_highest"]) == (-3.5, -3.0)
    assert found["reached_level"] == 2 and found["median_steps_to_level"] == 4


def arrivals() -> pd.DataFrame:
    """Eight runs of 10 updates; one of `dpo` in three never comes to the level, and SOL has none."""
    steps = {"dapo": {"BTC": [2.0, 4.0, 4.0]}, "dpo": {"BTC": [6.0, 8.0, np.nan], "SOL": [np.nan, np.nan]}}
    return pd.DataFrame(
        [(asset, name, 10, each) for name, own in steps.items() for asset, runs in own.items() for each in runs],
        columns=["asset", "algorithm", "steps", "steps_to_level"],
    )


def test_a_seed_that_never_arrives_is_no_mean_of_the_others() -> None:
    btc = arrivals().query("asset == 'BTC'")
    measures = btc.assign(last_reward_bps=0.0, regret_decrease=0.0, final_accuracy=0.0)
    table = over_seeds(measures).set_index("algorithm")
    assert table["reached_level"].tolist() == [3, 2]
    assert table["median_steps_to_level"].tolist() == [4, 8]
    late = over_seeds(measures.assign(steps_to_level=[2.0, np.nan, np.nan] * 2))
    assert late["reached_level"].tolist() == [1, 1] and late["median_steps_to_level"].isna().all()


def test_runs_under_way_are_those_of_kaplan_and_meier() -> None:
    curves = under_way(arrivals()).groupby("algorithm")
    curve = curves.get_group("dapo")
    assert curve["step"].tolist() == [0, 2, 4, 10] and curve["share"].tolist() == pytest.approx([1, 2 / 3, 0, 0])
    curve = curves.get_group("dpo")
    assert curve["step"].tolist() == [0, 6, 8, 10]
    assert curve["share"].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 1 / 3])
    cut = arrivals().query("algorithm == 'dpo' and asset == 'BTC'").assign(steps=[10, 10, 7])
    assert under_way(cut)["share"].tolist() == pytest.approx([1, 2 / 3, 2 / 3, 0, 0]), (
        "what ended at 7 says nothing of 8"
    )


def test_logs_are_found_whether_training_is_done_or_not(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path))
    btc = Paths("smoke", "BTC")
    for folder, name in ((btc.adapter("dapo", 1), "training_log"), (btc.run("dpo", 1), "progress")):
        folder.mkdir(parents=True)
        pd.DataFrame({"step": [0, 1], "seed": 1}).to_csv(folder / f"{name}.csv", index=False)
    found = logs_so_far(Paths("smoke"), ["BTC", "ETH"])
    assert found.groupby("algorithm").size().to_dict() == {"dapo": 2, "dpo": 2}
