"""Notices in words: when they come, what they do to the price, where they stand beside the features."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hyperdapo.errors import ParameterError
from hyperdapo.params import Parameters, load
from hyperdapo.sections import Notices
from hyperdapo.synthetic.exchange import World
from hyperdapo.synthetic.notices import DIRECTIONS, pushes, schedule, wire, with_notices
from hyperdapo.synthetic.wordings import KNOWN, NEW
from hyperdapo.times import HOUR_NS, MINUTE_NS, SECOND_NS

RULES = Notices(per_hour=36, drift_bps=12, after_s=30, lasts_s=60)


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    return load("notices")


def test_notices_come_as_often_as_asked_and_never_while_the_price_follows_another() -> None:
    said = schedule(RULES, "BTC", 7, 0, 200 * HOUR_NS)
    assert len(said) / 200 == pytest.approx(36, rel=0.02)
    assert np.diff(said["local_ns"]).min() >= 90 * SECOND_NS
    assert said["kind"].value_counts(normalize=True).to_dict() == pytest.approx(
        dict.fromkeys(DIRECTIONS, 1 / 3), abs=0.02
    )


def test_a_longer_span_has_the_same_beginning_and_each_asset_its_own() -> None:
    short, long = (schedule(RULES, "BTC", 7, 0, hours * HOUR_NS) for hours in (2, 5))
    pd.testing.assert_frame_equal(short, long[long["local_ns"] < 2 * HOUR_NS])
    assert set(short["local_ns"]).isdisjoint(schedule(RULES, "ETH", 7, 0, 2 * HOUR_NS)["local_ns"])


def test_none_where_none_is_asked_for() -> None:
    silent = RULES.model_copy(update={"per_hour": 0.0})
    assert schedule(silent, "BTC", 7, 0, HOUR_NS).empty and not len(pushes(silent, "BTC", 7, 0, HOUR_NS))


@pytest.mark.slow
def test_the_price_goes_where_the_notice_says_and_not_before(parameters: Parameters) -> None:
    """Two markets of the same draws, one of which hears no notice: what lies between them is the drift."""
    world, start_ns = World.of(parameters, "BTC"), parameters.source.start_ns
    silent = replace(world, notices=RULES.model_copy(update={"per_hour": 0.0}))
    end_ns = start_ns + 12 * MINUTE_NS
    heard, unheard = (each.simulate(start_ns, end_ns).market().top for each in (world, silent))
    moved = 0.0
    for push in pushes(world.notices, "BTC", world.seed, start_ns, end_ns - 2 * MINUTE_NS):
        instants = np.array([push["begins_ns"], push["ends_ns"] + 15 * SECOND_NS])
        mids = [top.mid[np.searchsorted(top.local_ns, instants) - 1] for top in (heard, unheard)]
        before, after = 1e4 * np.log(mids[0] / mids[1])
        assert before == pytest.approx(moved, abs=0.5)
        moved += 60e4 * push["drift"]
        assert after == pytest.approx(moved, abs=0.5)


def test_wordings_are_distinct_and_the_new_ones_wait_for_the_test_split(parameters: Parameters) -> None:
    texts = [text for pool in (KNOWN, NEW) for kind in pool.values() for text in kind]
    assert len(set(texts)) == len(texts)
    said = wire(parameters, "BTC")
    span = parameters.source.end_ns - parameters.source.start_ns
    late = said["local_ns"] >= parameters.source.start_ns + 0.7 * span
    assert (said.loc[~late, "wording"] == "known").all()
    assert said.loc[late, "wording"].value_counts(normalize=True)["new"] == pytest.approx(0.5, abs=0.15)
    pools = {"known": KNOWN, "new": NEW}
    assert all(row.text in pools[row.wording][row.kind] for row in said.itertuples())


def test_features_hear_a_notice_after_it_came_and_until_the_price_follows(parameters: Parameters) -> None:
    said_ns = int(wire(parameters, "BTC")["local_ns"].iloc[0])
    ages_s = [-1, 0, 1, 29, 31]
    rows = pd.DataFrame({"decision_ns": [said_ns + age * SECOND_NS for age in ages_s]}, index=[7, 8, 9, 10, 11])
    (heard,) = with_notices(iter([rows]), parameters, "BTC")
    assert (heard["notice"] != "").tolist() == [False, False, True, True, False]
    assert heard["notice_age_s"].dropna().tolist() == [1, 29] and heard.index.tolist() == rows.index.tolist()


def test_too_many_notices_are_refused() -> None:
    with pytest.raises(ParameterError, match="per_hour is too high"):
        load("notices", {"synthetic": {"notices": {"per_hour": 41}}})
