"""Nothing at or before a time may move when everything after it changes: no feature, no prompt, no decision."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest

from hyperdapo.actions import Action
from hyperdapo.execution.parents import candidate_orders
from hyperdapo.market.book import Market
from hyperdapo.market.features import compute_features, decision_grid
from hyperdapo.params import load
from hyperdapo.policy.prompts import encode_states
from markets import SECOND, random_market

PARAMETERS = load("smoke")


def _changed_after(market: Market, t: int, seed: int) -> Market:
    """The same market with every price and size received after `t` replaced."""
    rng = np.random.default_rng(seed)

    def scrambled(columns):
        after = columns.local_ns > t
        values = {field.name: getattr(columns, field.name).copy() for field in fields(columns)}
        for name, array in values.items():
            if name not in ("local_ns", "exchange_ns", "tid"):
                shape = array[after].shape
                array[after] = (
                    rng.choice([-1, 1], shape) if name == "side" else array[after] * rng.uniform(0.5, 2.0, shape)
                )
        return replace(columns, **values)

    return replace(market, book=scrambled(market.book), bbo=scrambled(market.bbo), trades=scrambled(market.trades))


@pytest.fixture(scope="module", params=range(3))
def worlds(request) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features up to some time t in a market, and in one that differs after t."""
    market = random_market(request.param)
    grid = decision_grid(market, 10.0)
    t = int(grid[-1] - 200 * SECOND)
    before = compute_features(market, grid, PARAMETERS.features)
    after = compute_features(_changed_after(market, t, request.param), grid, PARAMETERS.features)
    assert not before[grid > t].equals(after[grid > t]), "the change after t must show after t"
    return before[grid <= t], after[grid <= t]


def test_no_feature_moves(worlds) -> None:
    pd.testing.assert_frame_equal(*worlds, check_exact=True)


def _parents(features: pd.DataFrame) -> pd.DataFrame:
    rows = np.flatnonzero(features["warm"])
    return pd.DataFrame({"order_id": rows, "side": np.where(rows % 2, 1, -1), "objective": "balanced"})


@pytest.mark.parametrize("style", ["thesis", "anonymous"])
def test_no_prompt_moves(worlds, style: str) -> None:
    before, after = (encode_states(f, _parents(f), PARAMETERS.policy.actions, style) for f in worlds)
    assert len(before) > 10 and before == after


def test_no_order_of_an_action_moves() -> None:
    """Prices count from the touch as known at the decision."""
    market = random_market(3)
    ns = market.top.local_ns[1000:3000:7]
    t = int(ns[-1])
    parents = pd.DataFrame({"order_id": np.arange(len(ns)), "decision_ns": ns, "arrival_mid": market.mid_at(ns)})
    parents["side"] = np.where(np.arange(len(ns)) % 2, 1, -1)
    actions = [*PARAMETERS.policy.actions, Action("mid"), Action("bps", -1.0)]
    before, after = (candidate_orders(parents, one, actions) for one in (market, _changed_after(market, t, 0)))
    pd.testing.assert_frame_equal(before, after, check_exact=True)


def test_a_longer_recording_changes_no_earlier_row() -> None:
    market = random_market(9)
    grid = decision_grid(market, 10.0)
    t = grid[len(grid) // 2]

    def cut(columns):
        return replace(
            columns, **{field.name: getattr(columns, field.name)[columns.local_ns <= t] for field in fields(columns)}
        )

    short = replace(market, book=cut(market.book), bbo=cut(market.bbo), trades=cut(market.trades))
    whole = compute_features(market, grid, PARAMETERS.features)[grid <= t]
    pd.testing.assert_frame_equal(
        whole, compute_features(short, grid[grid <= t], PARAMETERS.features), check_exact=True
    )
