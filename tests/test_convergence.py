"""What is seen while training runs, and specialists against a generalist."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hyperdapo.evidence.figures import convergence, significance, style
from hyperdapo.evidence.gaps import specialist_gaps
from hyperdapo.params import load
from hyperdapo.paths import GENERALIST, Paths
from hyperdapo.policy.decisions import decide_across
from hyperdapo.policy.states import States, pooled
from planted import planted_splits, settings, train

EVIDENCE = load("smoke").evidence


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path / "outputs"))


def quick(**changes):
    return settings(**{"steps": 8, "checkpoint_every": 4, "evaluate_every": 4, "algorithms": ["dapo"]} | changes)


def test_training_shows_how_far_it_has_got(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is there, and loads itself again, before the first algorithm is done."""
    parameters, paths, splits = quick(), Paths("smoke", "BTC"), planted_splits(quick())
    monkeypatch.setattr(convergence, "_REFRESH_S", 0.0)
    pages = []

    def look() -> None:
        watch()
        pages.append(((paths.outputs / "dashboard.html").read_text(), paths.model("dapo").exists()))

    with convergence.Watch(parameters, paths) as watch:
        train(parameters, paths, splits["train"], splits["validation"], look)
    assert len(pages) == 2 and not any(done for _, done in pages)
    assert all('http-equiv="refresh"' in page for page, _ in pages)
    convergence.write_dashboard(parameters, paths)
    assert "http-equiv" not in (paths.outputs / "dashboard.html").read_text()


def test_news_is_shown_only_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = convergence.Watch(quick(), Paths("smoke", "BTC"))
    monkeypatch.setattr(convergence, "write_dashboard", lambda *_, **__: pytest.fail("too early"))
    watch()


def test_a_band_is_the_range_of_the_seeds() -> None:
    runs = pd.DataFrame({"step": [0, 1, 0, 1], "seed": [0, 0, 1, 1], "loss": [1.0, 3.0, 2.0, 5.0]})
    _, axis = style.new()
    style.band(axis, runs, "loss", "dapo")
    assert axis.lines[0].get_ydata().tolist() == [1.5, 4.0]
    bounds = axis.collections[0].get_paths()[0].get_extents()
    assert (bounds.y0, bounds.y1) == (1.0, 5.0)
    style.band(axis, runs.assign(loss=np.nan), "loss", "dapo")
    assert len(axis.lines) == 1


def test_a_long_band_averages_each_run_over_stretches() -> None:
    """Of 100 steps every fourth is 4, as a clip fraction that begins anew with each rollout: 25 points at 1."""
    steps = np.arange(1, 101)
    runs = pd.DataFrame({"step": steps, "seed": 0, "clip_fraction": np.where(steps % 4 == 0, 4.0, 0.0)})
    _, axis = style.new()
    style.band(axis, pd.concat([runs, runs.assign(seed=1, clip_fraction=3.0)]), "clip_fraction", "listing_4_3")
    assert axis.lines[0].get_xdata().tolist() == list(range(4, 101, 4)) and axis.lines[0].get_label() == "Listing 4.3"
    assert axis.lines[0].get_ydata().tolist() == [2.0] * style.STRETCHES
    bounds = axis.collections[0].get_paths()[0].get_extents()
    assert (bounds.y0, bounds.y1) == (1.0, 3.0)


def test_a_generalist_has_a_specialists_budget() -> None:
    splits = planted_splits(quick())
    few, many = splits["validation"], splits["train"]
    both = pooled([many, few])
    assert len(both) == pytest.approx((len(few) + len(many)) / 2, abs=10)
    assert len(pooled([many, many])) == pytest.approx(len(many), abs=1)
    assert both.prompts[0] == many.prompts[0] and both.prompts[-1] == few.prompts[-1]
    assert both.rewards.shape == (len(both), 6) and len(both.table) == len(both)


@pytest.mark.slow
def test_specialists_decide_on_every_asset() -> None:
    """Two assets in which opposite actions are best: a specialist loses on the other what it earns on its own."""
    parameters, splits = quick(steps=60, checkpoint_every=20, evaluate_every=60), planted_splits(quick())
    own = {"BTC": splits, "ETH": {name: turned(states) for name, states in splits.items()}}
    paths = Paths("smoke")
    for asset, parts in own.items():
        train(parameters, paths.of(asset), parts["train"], parts["validation"])
    learned, judged = (pooled([parts[name] for parts in own.values()]) for name in ("train", "validation"))
    train(parameters, paths.of(GENERALIST), learned, judged)
    earned = decide_across(parameters, paths, {asset: parts["test"] for asset, parts in own.items()}, "dapo")
    assert len(earned) == 2 * 60 * 3
    table = specialist_gaps(earned, EVIDENCE, 0).set_index(["asset", "trained_on"])
    for asset, other in (("BTC", "ETH"), ("ETH", "BTC")):
        assert table.loc[(asset, asset), "minus_specialist_bps"] == 0 and table.loc[(asset, asset), "reward_bps"] > 4
        assert table.loc[(asset, other), "ci_high"] < -4
    assert style.save(significance.plot_specialists(table.reset_index()), paths, "specialists").data


def turned(states: States) -> States:
    """The same states as ETH, where the action that was worst is best."""
    return States(states.table.assign(asset="ETH"), states.prompts, states.rewards[:, ::-1].copy(), states.distinct)


def test_the_dashboard_has_a_panel_an_asset_and_a_line_with_its_band_an_algorithm() -> None:
    rows = [(a, n, s, k) for a in ("BTC", "ETH") for n in ("dapo", "dpo") for s in (0, 1) for k in (0, 1)]
    log = pd.DataFrame(rows, columns=["asset", "algorithm", "seed", "step"])
    reward = log["seed"] + 1.0
    log = log.assign(loss=1.0, entropy=1.0, heldout_reward=reward, heldout_best_fixed=-2.0, heldout_accuracy=0.5)
    page = convergence.dashboard(log)
    shown = [trace for trace in page.data if trace.visible]
    assert {trace.yaxis for trace in shown} == {"y", "y2"} and len(shown) == 2 * 2 * 2
    assert len({(trace.line.color, trace.line.dash) for trace in shown if trace.mode == "lines"}) == 2
    line, band = shown[:2]
    assert line.y.tolist() == [3.5, 3.5], (
        "the margin of the reward over the best fixed action, in the mean of the seeds"
    )
    assert band.x.tolist() == [0, 1, 1, 0] and band.y.tolist() == [3, 3, 4, 4]
    assert sum(trace.showlegend for trace in shown) == 2
    accuracy = page.layout.updatemenus[0].buttons[1].args
    chosen = [trace for trace, seen in zip(page.data, accuracy[0]["visible"], strict=True) if seen]
    assert {value for trace in chosen for value in trace.y} == {0.5}
    assert accuracy[1]["yaxis2.title.text"] == "accuracy (share)"
