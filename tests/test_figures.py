"""Figures: one width, the same bytes each time, fonts inside, and every plot of the evidence drawn once."""

import re
import subprocess
import sys
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from PIL import Image

from hyperdapo.evidence import metrics, significance
from hyperdapo.evidence.figures import backtest as backtest_figures
from hyperdapo.evidence.figures import convergence as convergence_figures
from hyperdapo.evidence.figures import features as feature_figures
from hyperdapo.evidence.figures import pairs as pair_figures
from hyperdapo.evidence.figures import policy as policy_figures
from hyperdapo.evidence.figures import significance as results_figures
from hyperdapo.evidence.figures import style
from hyperdapo.evidence.hypotheses import registered
from hyperdapo.params import load
from hyperdapo.paths import Paths
from test_metrics import EVIDENCE, orders_frame
from test_tables import training_log

DRAW = """
import sys
from io import BytesIO
from hyperdapo.evidence.figures import style
from hyperdapo.paths import Paths
figure, axis = style.new()
axis.plot([1, 2, 3], label="a − b §")
axis.legend()
style.save(figure, Paths("smoke"), "line")
assert "matplotlib.pyplot" not in sys.modules, "a figure without pyplot is shown once"
"""


@pytest.fixture
def paths(tmp_path, monkeypatch) -> Paths:
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path / "outputs"))
    return Paths("smoke")


@pytest.fixture
def orders() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(12), 5)
    names = ["market", "best_fixed", "dapo", "dpo"]
    frames = [
        orders_frame(name, rng.normal(4, 2, 60), blocks, asset=asset) for asset in ("BTC", "ETH") for name in names
    ]
    return pd.concat(frames, ignore_index=True)


@pytest.mark.slow
def test_figures_are_the_same_in_every_process(paths: Paths) -> None:
    files = [paths.figures / "line.pdf", paths.figures / "line.png"]
    contents = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", DRAW], check=True)  # a new hash seed each time
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    pdf = contents[0][0]
    assert b"CreationDate" not in pdf and b"/FontFile2" in pdf and b"/Type3" not in pdf


def test_every_figure_is_as_wide_as_the_text(paths: Paths) -> None:
    figure, axes = style.new(2, 3, height=0.5, sharey=True)
    assert axes.shape == (2, 3) and figure.get_figwidth() == style.TEXT_WIDTH_IN
    shown = style.save(figure, paths, "grid")
    assert shown.data == (paths.figures / "grid.png").read_bytes()
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", (paths.figures / "grid.pdf").read_bytes())
    assert box and float(box[1]) == pytest.approx(72 * style.TEXT_WIDTH_IN, abs=0.01)


def test_the_study_of_language_shows_each_policy_by_wording() -> None:
    rows = [
        {"asset": asset, "trained_on": "BTC", "policy": policy, "states": states, "wording": wording}
        for asset in ("BTC", "ETH")
        for policy, states in (("words", 1000), ("zero-shot words", 0))
        for wording in ("all", "known", "new")
    ]
    gaps = pd.DataFrame(rows).assign(minus_fixed_bps=np.arange(12.0), ci_low=-1.0, ci_high=1.0)
    fewer = gaps.assign(states=gaps["states"] - 1, minus_fixed_bps=9.0)
    (axis,) = policy_figures.plot_language(pd.concat([fewer, gaps])).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["words", "zero-shot words"]
    assert [points.get_offsets()[:, 0].tolist() for points in axis.collections[1::2]] == [[0, 3], [1, 4], [2, 5]]


def test_worlds_of_the_study_stand_side_by_side_and_training_states_on_an_axis() -> None:
    state = {"asset": "BTC", "trained_on": "BTC", "ci_low": 0.0, "ci_high": 2.0}
    rows = [
        state | {"world": world, "policy": policy, "states": states, "wording": wording, "minus_fixed_bps": gain}
        for world, wording, gain in (("notices", "all", 1.0), ("notices", "known", 1.5), ("planted", "all", 0.5))
        for policy, states in (("linear", 200), ("linear", 50), ("told", 200))
        if (policy, world) != ("told", "planted")
    ]
    gaps = pd.DataFrame(rows)
    axes = policy_figures.plot_language(gaps).axes
    assert [axis.get_title("left") for axis in axes] == ["notices, BTC", "planted, BTC"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["linear", "told"], "one axis for both"
    left, right = policy_figures.plot_language_states(gaps).axes
    assert left.get_title("left") == "notices, BTC, known wordings"
    assert [line.get_ydata().tolist() for line in (left.lines[0], right.lines[0])] == [[1.5, 1.5], [0.5, 0.5]]
    assert all(np.diff(line.get_xdata()) > 0 for line in (left.lines[0], right.lines[0])), "from few states to many"
    assert [line.get_label() for line in left.lines[:-1]] == ["linear"], (
        "of what was trained on one number there is no line"
    )


def test_a_decision_is_drawn_by_how_the_book_leans() -> None:
    decisions = pd.DataFrame({"policy": "dapo", "action": [0, 0, 0, 2] * 10})
    actions = load("smoke").policy.actions[:3]
    (axis,) = policy_figures.plot_decided(decisions, np.arange(40.0), actions, "BTC").axes
    bands = [band.get_paths()[0].vertices[:, 1].max() for band in axis.collections]
    assert len(bands) == 3 and axis.get_title("left") == "BTC, DAPO"
    assert bands == pytest.approx([0.75, 0.75, 1.0]), "three of four the first, none the second, the rest the third"


def test_the_oracle_is_an_arrow_beyond_the_axis_of_what_can_be_traded() -> None:
    main = pd.DataFrame({"asset": "BTC", "strategy": ["market", "dapo", "oracle"], "total_cost_bps": [4.5, 3.0, -1.0]})
    main = main.assign(ci_low=main["total_cost_bps"] - 0.2, ci_high=main["total_cost_bps"] + 0.2)
    (axis,) = results_figures.plot_main(main, "asset", main["strategy"].tolist()).axes
    assert axis.get_xlim()[0] > 2.0 and [text.get_text() for text in axis.texts] == ["-1.0"]
    near = main.assign(ci_low=-2.0)
    assert not results_figures.plot_main(near, "asset", main["strategy"].tolist()).axes[0].texts


def test_costs_without_an_interval_are_drawn() -> None:
    main = pd.DataFrame({"asset": "ETH", "strategy": ["market", "dapo"], "total_cost_bps": [4.0, 3.0]})
    short = main.assign(ci_low=np.nan, ci_high=np.nan)
    (axis,) = results_figures.plot_main(short, "asset", ["market", "dapo"]).axes
    assert axis.get_xlim() == pytest.approx((2.94, 4.06))
    results_figures.plot_main(short.assign(total_cost_bps=np.nan), "asset", ["market", "dapo"])


def test_sureness_is_drawn_before_and_after_scaling() -> None:
    raw = pd.DataFrame({"policy": "dapo", "probability": [0.2, 0.9], "best": [0.3, 0.6]})
    left, right = policy_figures.plot_sureness(raw, raw.assign(probability=[0.3, 0.6]), "BTC").axes
    assert left.lines[0].get_xdata().tolist() == [0.2, 0.9] and right.lines[0].get_xdata().tolist() == [0.3, 0.6]


def test_latencies_are_drawn_by_precision_and_mode() -> None:
    times = {"ms": [4.0, 9.0, 90.0], "part": ["forward", "all", "all"], "mode": ["score", "score", "generate"]}
    speeds = metrics.latency_quantiles(pd.DataFrame(times).assign(backend="int8"))
    (axis,) = policy_figures.plot_latency(speeds, "BTC").axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["score, int8", "generate, int8"]
    assert axis.collections[1].get_offsets()[:, 0].tolist() == [9.0, 90.0]


def test_an_unknown_asset_always_has_the_same_colour() -> None:
    assert style.ASSET_COLOURS["DOGE"] == style.ASSET_COLOURS["DOGE"] != style.ASSET_COLOURS["BTC"]
    assert "DOGE" not in style.ASSET_COLOURS


def test_results_are_drawn(paths: Paths, orders: pd.DataFrame) -> None:
    tests = significance.paired_tests(orders, "best_fixed", EVIDENCE, 0)
    strategies = ["market", "dapo", "dpo"]
    forest = results_figures.plot_forest(tests, strategies, "best_fixed")
    assert [label.get_text() for label in forest.axes[0].get_yticklabels()] == ["Market order", "DAPO", "DPO"]
    parts = metrics.decompose(orders, "best_fixed", EVIDENCE, 0)
    decomposition = results_figures.plot_decomposition(parts, strategies, "best_fixed")
    independence = results_figures.plot_independence(tests)
    claimed = load("smoke").hypotheses.model_copy(update={"references": ["market", "dpo"]})
    bounds = dict.fromkeys(("cost_all_ahead_bps", "cost_all_behind_bps"), orders["total_cost_bps"])
    hypotheses = results_figures.plot_hypotheses(registered.judge(orders.assign(**bounds), claimed, EVIDENCE, 0))
    assert [label.get_text() for label in hypotheses.axes[0].get_yticklabels()] == ["Market order", "DPO"]
    assert style.save(hypotheses, paths, "hypotheses").data
    rates = results_figures.plot_size_power(registered.size_power(), claimed.alpha)
    assert style.save(rates, paths, "size_power").data
    for name, figure in {"forest": forest, "parts": decomposition, "independence": independence}.items():
        assert style.save(figure, paths, name).data


def test_what_decides_again_stands_beside_two_rules() -> None:
    given = {
        "asset": "BTC",
        "strategy": ["dapo", "mid_peg"],
        "ci_low": [-0.2, 0.0],
        "ci_high": [0.1, 0.4],
        "orders": 60,
    }
    each = [pd.DataFrame(given | {"reference": name, "difference_bps": [-0.1, 0.2]}) for name in ("market", "dpo")]
    left, right = results_figures.plot_decided_again(pd.concat(each), ["mid_peg", "dapo", "untrained"]).axes
    assert (left.get_title("left"), right.get_title("left")) == ("less Market order", "less DPO")
    drawn = left.lines[0].get_xdata()
    assert drawn[:2].tolist() == [0.2, -0.1] and np.isnan(drawn[2])


def test_how_often_is_decided_stands_on_the_axis() -> None:
    given = {"asset": "BTC", "reference": "touch_requoted", "ci_low": -0.6, "ci_high": -0.1}
    each = {"strategy": ["threshold_every_2s", "boosting_every_2s", "threshold_requoted", "boosting_sequential"]}
    table = pd.DataFrame(each | given | {"every_s": [2.0, 2.0, 10.0, 10.0], "difference_bps": [-0.4, -0.5, -0.2, -0.3]})
    less_rule = table.tail(1).assign(reference="threshold_requoted", difference_bps=9.0)
    (axis,) = results_figures.plot_how_often(pd.concat([table, less_rule])).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert lines["One threshold, requoted"] == [-0.4, -0.2] and lines["Boosting, again"] == [-0.5, -0.3]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["2", "10"]


def test_the_learning_gap_shows_its_intervals(paths: Paths) -> None:
    gaps = pd.DataFrame({"asset": ["BTC", "BTC", "ETH"], "algorithm": ["dapo", "dpo", "dapo"], "seed": 0})
    levels = {
        "untrained_bps": -6.0,
        "best_fixed_bps": -4.0,
        "trained_bps": -3.0,
        "linear_bps": -3.5,
        "mlp_bps": -3.0,
        "boosting_bps": -2.5,
        "oracle_bps": -2.0,
    }
    gaps = gaps.assign(**levels, gap_closed=0.5, gap_ci_low=0.3, gap_ci_high=0.6, boosting_gap_closed=0.75)
    gaps = gaps.assign(linear_gap_closed=0.25, mlp_gap_closed=0.5)
    figure = results_figures.plot_learning_gap(gaps)
    drawn = [line.get_segments()[0] for line in figure.axes[1].collections if isinstance(line, LineCollection)]
    shares = [segment for segment in drawn if segment[0, 1] == segment[1, 1]]
    assert len(shares) == 3 and np.allclose(shares[0][:, 0], [30, 60])
    assert style.save(figure, paths, "gap").data


def test_convergence_is_drawn(paths: Paths) -> None:
    log = pd.concat([training_log(asset) for asset in ("BTC", "ETH", "SOL")], ignore_index=True)
    log = log.assign(entropy=1.0, clip_fraction=0.1, filtered_groups=2.0, heldout_best_fixed=-4.0)
    assert style.save(convergence_figures.plot_learning(log), paths, "learning").data
    assert style.save(convergence_figures.plot_training(log), paths, "training").data
    shares = pd.DataFrame({"algorithm": ["dapo"] * 3, "step": [0, 4, 10], "share": [1.0, 0.5, 0.5]})
    figure = convergence_figures.plot_under_way(shares)
    assert figure.axes[0].lines[0].get_ydata().tolist() == [100, 50, 50]
    assert style.save(figure, paths, "under_way").data
    page = convergence_figures.dashboard(log)
    curves = 4 + 3  # DAPO has no loss here
    assert len(page.data) == 3 * 2 * curves and sum(trace.showlegend for trace in page.data) == curves
    html = [page.to_html(include_plotlyjs=False, div_id="training") for _ in range(2)]
    assert html[0] == html[1]


def test_trials_lie_in_the_triangle_of_their_weights(paths: Paths) -> None:
    weights = pd.DataFrame(np.vstack([np.eye(3), np.full((1, 3), 1 / 3)]), columns=["execution", "risk", "cost"])
    trials = weights.assign(total_cost_bps=[1.0, 2.0, 3.0, 0.5])
    unknown = pd.DataFrame({"weights": ["picked_elsewhere"], "execution": np.nan, "risk": np.nan, "cost": np.nan})
    marked = pd.concat([weights.tail(1).assign(weights="best"), unknown], ignore_index=True)
    figure = pair_figures.plot_weights(trials, marked, "BTC")
    points, best = figure.axes[0].collections
    high = np.sqrt(0.75)
    np.testing.assert_allclose(points.get_offsets(), [[0.5, high], [1, 0], [0, 0], [0.5, high / 3]], atol=1e-12)
    np.testing.assert_allclose(best.get_offsets(), [[0.5, high / 3]])
    assert points.get_array().tolist() == [3.0, 2.0, 1.0, 0.5]
    assert style.save(figure, paths, "weights").data


def test_moments_outside_their_bounds_are_filled(paths: Paths) -> None:
    table = pd.DataFrame(
        {"moment": ["volatility_1s_bps", "spread_ticks", "maker_gain_1s_bps"], "real": [1.0, 2.0, -0.1]}
    )
    table = table.assign(measured=[1.1, 12.0, 0.3], low=[0.5, 1.0, -0.2], high=[2.0, 4.0, -0.05])
    table = table.assign(ratio=table["measured"] / table["real"], within=[True, False, False])
    figure = feature_figures.plot_moments(table, "BTC")
    drawn = {
        line.get_marker(): line
        for line in figure.axes[0].lines
        if len(line.get_xdata()) and line.get_marker() != "None"
    }
    assert {marker: float(line.get_xdata()[0]) for marker, line in drawn.items()} == {"o": 1.1, "<": 0.2, ">": 5.0}
    assert drawn["o"].get_markerfacecolor() == "white" != drawn[">"].get_markerfacecolor()
    unknown = table.assign(**dict.fromkeys(("real", "low", "high", "ratio"), np.nan), within=False)
    figure = feature_figures.plot_moments(unknown, "HYPE")
    assert figure.axes[0].texts[0].get_text() == "no recording of HYPE"
    assert style.save(figure, paths, "moments").data


def test_the_palette_keeps_the_colours_of_a_whole_scale(paths: Paths) -> None:
    figure, axis = style.new()
    axis.imshow(np.linspace(-1, 1, 512)[None, :], cmap="RdBu_r", aspect="auto")
    plain = BytesIO()
    figure.savefig(plain, format="png")
    style.save(figure, paths, "scale")
    before, after = (np.asarray(Image.open(file).convert("RGB"), int) for file in (plain, paths.figures / "scale.png"))
    assert np.abs(before - after).max() <= 16, "a colour that is visibly another"


def test_fills_and_markouts_are_drawn_by_their_kind(paths: Paths) -> None:
    """Half of the orders of `dapo` is made, and falls by 2 bps; what is taken of it, and of `market`, rises by 1."""
    rows = []
    for strategy, made in (("dapo", 0.5), ("dapo", 0.0), ("market", 0.0)):
        routes = {"filled_queue": made * 0.4, "filled_through": made * 0.1, "filled_crossed": made * 0.5}
        moved = {f"maker_markout_{s}s_bps": -2.0 if made else np.nan for s in (1, 10)}
        rows.append({"strategy": strategy, "maker_share": made} | routes | moved | {"taker_markout_1s_bps": 1.0})
    orders = pd.DataFrame(rows).assign(taker_markout_10s_bps=1.0)
    fills = backtest_figures.plot_fills(orders, ["market", "dapo"])
    widths = [[bar.get_width() for bar in container] for container in fills.axes[0].containers]
    np.testing.assert_allclose(widths, [[0.1, 0], [0.025, 0], [0.125, 0], [0.75, 1]])
    markouts = backtest_figures.plot_markouts(orders, ["market", "dapo"])
    made, taken = ([line.get_ydata().tolist() for line in axis.lines[:2]] for axis in markouts.axes)
    assert np.isnan(made[0]).all() and made[1] == [-2, -2] and taken == [[1, 1], [1, 1]]
    for name, figure in {"fills": fills, "markouts": markouts}.items():
        assert style.save(figure, paths, name).data
