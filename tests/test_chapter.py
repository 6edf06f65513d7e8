"""Chapter 5: tables within the page, no raw name in print, numbers as macros with a source, claims with a status."""

import itertools
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import REPOSITORY
from hyperdapo.evidence import claims, metrics, provenance, significance
from hyperdapo.evidence.chapter import document, names
from hyperdapo.evidence.chapter.book import Book, Source
from hyperdapo.evidence.chapter.dataset import dataset
from hyperdapo.evidence.chapter.layout import Group, Table, number_format
from hyperdapo.evidence.figures import courses as course_figures
from hyperdapo.evidence.figures import style
from hyperdapo.evidence.gaps import RIVALS
from hyperdapo.evidence.hypotheses import registered, superiority
from hyperdapo.evidence.hypotheses.conditions import INTERACTION, conditions
from hyperdapo.evidence.hypotheses.courses import cumulative, distribution
from hyperdapo.evidence.metrics import TOTAL
from hyperdapo.files import read_table
from hyperdapo.params import load
from hyperdapo.paths import GENERALIST, Paths
from hyperdapo.plan import WRITES
from smoke import PROFILE, Run
from test_metrics import EVIDENCE, orders_frame

SMOKE = load("smoke")
QUICK = EVIDENCE.model_copy(update={"bootstrap": 100})
ASSETS, ALGORITHMS = ("BTC", "ETH", "SOL", "HYPE"), ("dapo", "dapo_sampled", "dpo", "reward_weighted")
BLOCKS = np.repeat(np.arange(30), 10)
POINTS = 2.0
"""By so much may a line be wider than the page."""
OVERFULL = re.compile(r"Overfull \\hbox \((\d+\.\d+)pt too wide\)[^\n]*")
NOT_PRINTED = re.compile(r"\\(?:input|label|ref|includegraphics(?:\[[^\]]*\])?)\{[^}]*\}|%[^\n]*|\\[A-Za-z]+")
KEYS = {name for name in style.STRATEGY_COLOURS if "_" in name}


def executed() -> pd.DataFrame:
    """Orders of four assets by every strategy that is known; costs of the oracle go far below zero."""
    rng, frames = np.random.default_rng(0), []
    for asset in ASSETS:
        market = rng.normal(5, 2, len(BLOCKS))
        for place, name in enumerate(style.STRATEGY_COLOURS):
            noise = rng.normal(size=30)[BLOCKS] * 0.2 + rng.normal(size=len(BLOCKS))
            cost = market - 0.1 * place + noise * (name != "market") - 15 * (name == "oracle")
            frames.append(orders_frame(name, cost, BLOCKS, asset=asset))
    orders = pd.concat(frames, ignore_index=True)
    orders = orders.assign(**{cost: orders[TOTAL] for cost in metrics.BOUNDS}, funding_bps=0.0, maker_share=0.5)
    parts = {"spread_bps": 0.5, "timing_bps": orders[metrics.PRICE] - 0.5, "opportunity_bps": 0.0}
    rank = orders["order_id"] * 7 % 31
    return orders.assign(**parts, volatility_5m_bps=rank, bid_ask_spread_bps=-rank)


def learned() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Runs of three seeds, the gaps of their means, and adapters on other assets."""
    grid = list(itertools.product(ASSETS, ALGORITHMS, range(3)))
    runs = pd.DataFrame(grid, columns=["asset", "algorithm", "seed"]).assign(final_accuracy=0.4, regret_decrease=0.7)
    runs["steps_to_level"] = np.where(runs["algorithm"] == "dapo", [100.0, 200.0, np.nan] * 16, 400.0)
    rewards = {name: -1.0 for name in ("untrained", "best_fixed", "trained", "oracle", *RIVALS)}
    gaps = runs.drop_duplicates(["asset", "algorithm"])[["asset", "algorithm"]]
    gaps = gaps.assign(**{f"{name}_bps": reward for name, reward in rewards.items()}, gap_closed=0.5)
    gaps = gaps.assign(**{f"{name}_gap_closed": 0.25 for name in RIVALS}, gap_ci_low=-1.25, gap_ci_high=np.inf)
    for of in ("dpo", "boosting"):
        gaps = gaps.assign(**{f"minus_{of}_bps": 0.5, f"minus_{of}_ci_low": 0.1, f"minus_{of}_ci_high": 0.9})
    rows = [(asset, trained_on, -0.5, -0.7, -0.3) for asset in ASSETS for trained_on in (asset, GENERALIST)]
    crossed = pd.DataFrame(rows, columns=["asset", "trained_on", "minus_specialist_bps", "ci_low", "ci_high"])
    return runs, gaps.reset_index(drop=True), crossed


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    """Of four assets, every strategy, and blocks enough for tests."""
    orders, (runs, gaps, crossed) = executed(), learned()
    scores = pd.DataFrame(list(itertools.product(ASSETS, ("power", "risk_averse"))), columns=["asset", "queue_model"])
    scores = scores.assign(orders=1200, brier=0.01, auc=0.999, fill_time_error_s=1.5, cost_error_bps=0.1)
    report = {"kept": {"trades": 10**7}, "dropped": {"trades": 3}, "gaps": [], "gap_s": 0, "decisions": {"usable": 9}}
    minutes = pd.DataFrame({"spread_bps": [0.1], "depth_usd": [1e6]})
    states = orders[orders["strategy"] == "market"].assign(split="test", side=1)
    claimed = SMOKE.hypotheses
    return {
        "dataset": dataset(
            dict.fromkeys(ASSETS, report | {"begins_ns": 0, "ends_ns": 86_400 * 10**9}),
            dict.fromkeys(ASSETS, minutes),
            states,
        ),
        "learning_gap_over_seeds": gaps,
        "convergence": runs,
        "main": metrics.main_table(orders, QUICK, 0),
        "hypotheses": registered.judge(orders, claimed, QUICK, 0),
        "significance": significance.paired_tests(orders, "best_fixed", QUICK, 0),
        "superiority": superiority.superiority(orders, ALGORITHMS, QUICK, 0),
        "decomposition": pd.concat([metrics.decompose(orders, name, QUICK, 0) for name in ("best_fixed", "market")]),
        "fill_calibration": scores.assign(cost_bias_bps=-0.1, brier_excess=0.0, ci_low=np.nan, ci_high=np.nan),
        "conditions": conditions(orders, "dapo", "best_fixed", QUICK, 0),
        "cumulative": cumulative(orders, "dapo", claimed.references, QUICK),
        "distribution": distribution(orders),
        "claims": claims.claims_table(orders, runs, gaps, crossed, QUICK, 0),
    }


def written(frames: Mapping[str, pd.DataFrame], folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """The chapter of some frames, with three figures; its folder."""
    patch.setenv("HYPERDAPO_OUTPUTS", str(folder / "outputs"))
    patch.setenv("HYPERDAPO_DATA", str(folder / "data"))
    paths = Paths(PROFILE)
    style.save(course_figures.plot_cumulative(frames["cumulative"]), paths, "cumulative")
    shown = ["market", "best_fixed", "dapo"]
    style.save(course_figures.plot_distribution(frames["distribution"], shown), paths, "distribution")
    style.save(course_figures.plot_conditions(frames["conditions"]), paths, "conditions")
    files = document.write(frames, SMOKE, paths)
    assert all(path.stat().st_size for path in files)
    return paths.outputs / document.FOLDER


@pytest.fixture(scope="module")
def chapter(frames: dict[str, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of these frames, to be read."""
    with pytest.MonkeyPatch.context() as patch:
        return written(frames, tmp_path_factory.mktemp("chapter"), patch)


def compiled(folder: Path) -> str:
    """What TeX says the second time."""
    if shutil.which("pdflatex") is None or subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True).returncode:
        pytest.skip("no pdflatex with siunitx: apt-get install texlive-latex-recommended texlive-science lmodern")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def faults(folder: Path) -> list[str]:
    """Lines too wide, references that lead nowhere, and raw names in what is printed."""
    log = compiled(folder)
    wide = [match[0] for match in OVERFULL.finditer(log) if float(match[1]) > POINTS]
    undefined = re.findall(r"LaTeX Warning: Reference[^\n]*|Undefined control sequence[^\n]*", log)
    raw = []
    for path in sorted(folder.glob("*.tex")):
        if path.name in ("preamble.tex", "main.tex"):
            continue
        text = NOT_PRINTED.sub(" ", path.read_text())
        raw += [f"{path.name}: {word}" for word in re.findall(r"\w*[A-Za-z]\\?_\w+", text)]
        raw += [f"{path.name}: {key}" for key in KEYS if key in text]
        raw += [f"{path.name}: nan"] * bool(re.search(r"\bnan\b", text))
    return wide + undefined + raw


class TestChapter:
    def test_it_compiles_within_the_page_without_raw_names(self, chapter) -> None:
        assert faults(chapter) == []

    def test_the_check_would_see_what_is_wrong(self, chapter, tmp_path) -> None:
        shutil.copytree(chapter.parent, tmp_path / "outputs")
        folder = tmp_path / "outputs" / document.FOLDER
        text = (folder / "findings_limits.tex").read_text()
        (folder / "findings_limits.tex").write_text(rf"{text} \mbox{{{'wide ' * 40}}} see \ref{{tab:none}} best\_fixed")
        assert [fault.split()[0] for fault in faults(folder)] == ["Overfull", "LaTeX", "findings_limits.tex:"]

    def test_every_number_that_is_shown_is_a_macro(self, chapter) -> None:
        folder = chapter
        lines = (folder.parent / "numbers.tex").read_text().splitlines()[1:]
        values = dict(re.match(r"\\newcommand\{(\\\w+)\}\{(.*?)\} % \w+\.csv", line).groups() for line in lines)
        digits = {re.sub(r"\\num\{(.*)\}", r"\1", value) for value in values.values()}
        for path in folder.glob("table_*.tex"):
            rows = [line for line in path.read_text().split(r"\midrule")[1].splitlines() if line.endswith(r" \\")]
            shown = {cell.strip().removeprefix(r"\bfseries ") for row in rows for cell in row[:-3].split(" & ")}
            assert {cell for cell in shown if re.fullmatch(r"-?\d+(\.\d+)?", cell)} <= digits, path.name
        used = {name for path in folder.glob("*.tex") for name in re.findall(r"\\Hd[A-Za-z]+", path.read_text())}
        assert used <= set(values) and 300 < len(values) < 1500
        index = (folder / "numbers.md").read_text()
        assert all(f"`{name}`" in index for name in values)

    def test_a_null_result_is_said_plainly(self, frames, tmp_path, monkeypatch) -> None:
        judged = frames["hypotheses"].assign(status="not established", because="nothing")
        folder = written(dict(frames) | {"hypotheses": judged}, tmp_path, monkeypatch)
        assert "No saving of DAPO is established here." in (folder / "findings_significance.tex").read_text()

    def test_the_statement_answers_every_item(self, chapter) -> None:
        text = (chapter / "reproducibility.md").read_text()
        assert len(re.findall(r"^\| \d[a-g] \| .+ \| .+ \| .+ \|$", text, re.M)) == 32 and "{" not in text
        for word in ("Apache 2.0", "cores", "training seeds", "Trials of a search: dapo"):
            assert word in text

    def test_the_map_knows_every_figure_and_table(self, chapter) -> None:
        text = (chapter / "map.md").read_text()
        for path in sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb")):
            source = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
            for name in re.findall(r'save\(.*paths, f?"(\w+?)(?:_\{asset\})?(?:_\{stream\})?"', source):
                assert f"/{name}" in text, f"{path.name}: {name}"

    @pytest.mark.slow
    def test_that_of_a_run_compiles_too(self, smoke: Run, tmp_path) -> None:
        shutil.copytree(smoke.outputs / PROFILE, tmp_path / PROFILE)
        assert faults(tmp_path / PROFILE / document.FOLDER) == []

    @pytest.mark.slow
    def test_every_figure_of_a_run_has_its_caption(self, smoke: Run) -> None:
        folder = smoke.outputs / PROFILE / "figures"
        for path in folder.glob("*.pdf"):
            text = path.with_suffix(".tex").read_text()
            assert r"\caption{" in text and "% notebook: " in text and "% commit: " in text and "% parameters: " in text

    @pytest.mark.slow
    def test_the_frames_of_a_run_are_enough(self, smoke: Run, tmp_path, monkeypatch) -> None:
        folder = smoke.kept.derived
        stems = [name.split(".")[0] for name in (*WRITES["09_significance"], "convergence.parquet")]
        written({stem: read_table(folder, stem) for stem in stems}, tmp_path, monkeypatch)


class TestBook:
    SOURCE = Source("main", "BTC dapo", TOTAL)

    def test_a_macro_has_letters_only_and_names_its_source(self) -> None:
        book = Book()
        assert book.cell(("BTC", "dapo", "markout 60s"), -1.234, 2, self.SOURCE) == "-1.23"
        assert book.say(("BTC", "b"), float("inf"), 2, self.SOURCE) == r"\HdBtcB{}"
        assert book.cell(("BTC", "c"), float("nan"), 2, self.SOURCE) == "{--}"
        lines = book.macros().splitlines()[1:]
        assert lines == sorted(lines)
        assert lines[0] == r"\newcommand{\HdBtcB}{$\infty$} % main.csv, BTC dapo, total_cost_bps"
        assert lines[2] == r"\newcommand{\HdBtcDapoMarkoutSixZeroS}{\num{-1.23}} % main.csv, BTC dapo, total_cost_bps"

    def test_two_numbers_of_one_name_are_refused(self) -> None:
        book = Book()
        book.enter(("a", "b"), 1.0, 1, self.SOURCE)
        book.enter(("a_b",), 1.0, 1, self.SOURCE)
        with pytest.raises(ValueError, match="two numbers are called"):
            book.enter(("a_b",), 2.0, 1, self.SOURCE)

    def test_numbers_of_a_text_are_entered(self) -> None:
        book = Book()
        text = book.words(("why",), "5 blocks of 60.5 s need 1,000 % in Qwen2.5-7B", self.SOURCE)
        assert text == r"\HdWhyNumberOne{} blocks of \HdWhyNumberTwo{} s need \HdWhyNumberThree{} \% in Qwen2.5-7B"
        assert [shown for shown, _ in book.entries.values()] == ["5", "60.5", "1000"]


def test_columns_hold_what_stands_in_them() -> None:
    assert number_format(["1234", r"\bfseries -0.25", "{--}"]) == "S[table-format=-4.2]"
    table = Table("x", "C", [("A", "l"), ("B", "S")], [Group("G"), ["a", "1"], Group("H"), ["b", "2"]], "N")
    assert table.latex().count(r"\multicolumn{2}") == 2 and table.latex().count(r"\addlinespace") == 1


class TestClaims:
    def test_each_of_the_draft_s_claims_has_a_status(self, frames) -> None:
        table = frames["claims"]
        assert set(table["claim"]) == set(claims.CLAIMS)
        assert table["status"].str.partition(":")[0].isin(claims.STATUSES).all()
        assert not (table["measured"].isna() & ~table["status"].str.startswith(claims.NOT_AVAILABLE)).any()
        assert set(table[table["status"] == "not available: needs a GPU"]["claim"]) == {"memory", "size", "latency"}
        found = table[table["asset"] != "ETH"].set_index("claim")
        assert found.loc["trainable", "measured"] == 10.092544 and found.loc["trainable", "status"] == claims.HOLDS

    def test_the_interval_decides(self, frames) -> None:
        found = frames["claims"].set_index(["claim", "asset"])
        assert found.loc[("fill_rate", "BTC"), ["measured", "status"]].tolist() == [75.0, "holds"]
        assert found.loc[("slippage", "BTC"), ["measured", "status"]].tolist() == [-1.0, "holds"]
        assert found.loc[("accuracy", "ETH"), "status"] == "does not hold"
        assert ("accuracy", "SOL") not in found.index, "the draft names two assets"
        assert found.loc[("specialists", "SOL"), ["measured", "ci_low", "ci_high"]].tolist() == [0.5, 0.3, 0.7]

    def test_seeds_that_did_not_arrive_are_counted_and_not_averaged_away(self, frames) -> None:
        row = frames["claims"].set_index(["claim", "asset"]).loc[("fewer_steps", "BTC")]
        assert row["measured"] == 50.0 and "2 of 3 seeds of DAPO arrived and 3 of 3 seeds of DPO" in row["limits"]
        runs, gaps, crossed = learned()
        late = runs.assign(steps_to_level=runs["steps_to_level"].mask(runs["algorithm"] == "dapo"))
        table = claims.claims_table(executed(), late, gaps, crossed, QUICK, 0).set_index(["claim", "asset"])
        assert table.loc[("fewer_steps", "BTC"), "status"].startswith("not available: 0 of 3 seeds of DAPO arrived")


class TestConditions:
    def orders(self, more: float) -> pd.DataFrame:
        """`dapo` costs `more` in the highest tercile, and nothing more elsewhere."""
        rng = np.random.default_rng(1)
        blocks = np.repeat(np.arange(60), 10)
        rank = rng.permutation(600)
        frames = []
        for name in ("best_fixed", "dapo"):
            cost = rng.normal(size=600) + more * (name == "dapo") * (rank >= 400)
            frames.append(orders_frame(name, cost, blocks))
        return pd.concat(frames).assign(volatility_5m_bps=np.tile(rank, 2), bid_ask_spread_bps=1.0)

    def test_an_interaction_is_seen_and_none_is_not(self) -> None:
        for more, seen in ((1.0, True), (0.0, False)):
            table = conditions(self.orders(more), "dapo", "best_fixed", QUICK, 0).set_index(["regime", "level"])
            row = table.loc[("volatility", INTERACTION)]
            assert (row["p_holm"] < 0.05) == seen and row["ci_low"] < more < row["ci_high"]
            assert row["orders"] == 400 and (table.loc["volatility"].loc[["low", "high"], "orders"] == 200).all()

    def test_a_regime_of_one_level_has_no_interaction(self) -> None:
        table = conditions(self.orders(0.0), "dapo", "best_fixed", QUICK, 0)
        assert INTERACTION not in set(table.loc[table["regime"] == "spread", "level"])

    def test_few_blocks_are_said(self) -> None:
        short = self.orders(0.0)
        short = short[short["block"] < 4]
        table = conditions(short, "dapo", "best_fixed", QUICK, 0)
        assert table["note"].str.contains("blocks of time").all() and table[["ci_low", "p"]].isna().all(axis=None)


def test_a_course_ends_at_the_mean_difference(frames) -> None:
    ends = frames["cumulative"].groupby(["asset", "reference"])["cumulative_bps"].last()
    judged = frames["hypotheses"].set_index(["asset", "reference"])["difference_bps"]
    assert np.allclose(ends, judged[ends.index]) and ends.index.get_level_values("asset").nunique() == 4


def test_quantiles_rise(frames) -> None:
    rise = frames["distribution"].groupby(["asset", "strategy"])[TOTAL].diff().dropna()
    assert (rise >= 0).all()


def test_every_strategy_has_a_name_in_print() -> None:
    for key in style.STRATEGY_COLOURS:
        assert "_" not in names.strategy(key) and key not in KEYS & {names.strategy(key), names.within(key)}


def test_every_figure_of_the_notebooks_has_a_caption() -> None:
    captions: dict[str, dict[str, Any]] = yaml.safe_load(style.CAPTIONS.read_text())
    for path in sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        source = "\n".join(cell.source for cell in cells if cell.cell_type == "code" and "figures.save" in cell.source)
        calls = re.findall(r'figures\.save\(.*paths, f?"(\w+)', source)
        for name in calls:
            assert name.removesuffix("_") in captions[path.stem], f"{path.stem}: {name}"


def test_a_caption_says_what_made_it(monkeypatch) -> None:
    monkeypatch.setattr(provenance, "_begun", {})
    provenance.begin("08_backtest", SMOKE)
    lines = style.caption("fills_BTC", "BTC").splitlines()
    assert lines[1] == "% notebook: notebooks/08_backtest.ipynb" and lines[3] == f"% parameters: {SMOKE.fingerprint()}"
    assert lines[4].endswith(r"quotes that came to it. BTC.}\label{fig:fills_BTC}")
    assert style.caption("my own") == ""


def _seen(colour: str, matrix: np.ndarray) -> np.ndarray:
    """CIE Lab of a colour as someone with this matrix (Machado, Oliveira and Fernandes 2009) sees it."""
    coded = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(matrix @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def test_the_colour_blind_can_tell_strategies_apart() -> None:
    """No two share a colour; those that share a marker are far apart for all eyes (25: five times a visible step)."""
    sight = {
        "full": np.eye(3),
        "no green": np.array(
            [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
        ),
        "no red": np.array(
            [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
        ),
    }
    colours = style.STRATEGY_COLOURS
    assert len(set(colours.values())) == len(colours)
    for one, other in itertools.combinations(colours, 2):
        if style.marker(one) == style.marker(other):
            apart = [np.linalg.norm(_seen(colours[one], eye) - _seen(colours[other], eye)) for eye in sight.values()]
            assert min(apart) > 25, (one, other, apart)
