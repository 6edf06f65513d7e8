"""Fees by date and tier, and eq. 2.4."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from hyperdapo.errors import ParameterError
from hyperdapo.execution.costs import fee_rates, square_root_impact
from hyperdapo.execution.laws import as_measured
from hyperdapo.params import load


def _ns(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp()) * 10**9


def test_base_fees_change_at_the_announced_hour() -> None:
    taker, maker = fee_rates([_ns(2023, 8, 1), _ns(2024, 3, 11), _ns(2025, 5, 5, 2, 59), _ns(2025, 5, 5, 3)], tier=0)
    assert taker.tolist() == [2.5, 3.5, 3.5, 4.5]
    assert maker.tolist() == [-0.2, 1.0, 1.0, 1.5]


def test_tiers_of_the_present_schedule_fall() -> None:
    rates = [fee_rates(_ns(2025, 8, 1), tier) for tier in range(7)]
    assert [float(taker[0]) for taker, _ in rates] == [4.5, 4.0, 3.5, 3.0, 2.8, 2.6, 2.4]
    assert [float(maker[0]) for _, maker in rates] == [1.5, 1.2, 0.8, 0.4, 0.0, 0.0, 0.0]


def test_what_is_not_known_is_an_error() -> None:
    with pytest.raises(ParameterError, match=r"tier 3 before 2025-05-05.*execution\.fees\.tier"):
        fee_rates([_ns(2025, 1, 1), _ns(2025, 8, 1)], tier=3)
    with pytest.raises(ParameterError, match="June 2023"):
        fee_rates(_ns(2022, 1, 1), tier=0)


def test_no_order_has_no_fee() -> None:
    taker, maker = fee_rates(np.array([], dtype=np.int64), tier=0)
    assert len(taker) == len(maker) == 0


def test_impact_is_the_square_root_of_the_share_of_the_day() -> None:
    assert square_root_impact([0.0, 1.0, 4.0, 100.0], 100.0, 10.0) == pytest.approx([0.0, 1.0, 2.0, 10.0])


def test_impact_stops_at_a_whole_day() -> None:
    assert square_root_impact([400.0, 1.0], 100.0, 10.0) == pytest.approx([10.0, 1.0])
    assert square_root_impact([0.0, 1.0], 0.0, 10.0) == pytest.approx([0.0, 10.0])


def laws(lambda_bps: float, queue_exponent: float) -> pd.DataFrame:
    found = {"beta": 0.1, "lambda_bps": lambda_bps, "queue_exponent": queue_exponent}
    return pd.DataFrame({"parameter": list(found), "value": list(found.values())})


@pytest.mark.parametrize(("measured", "used"), [((71.0, 1.4), (71.0, 1.4)), ((-3.0, np.inf), (0.0, np.inf))])
def test_null_stands_for_what_was_measured(measured: tuple[float, float], used: tuple[float, float]) -> None:
    execution = as_measured(load("smoke"), laws(*measured)).execution
    assert (execution.impact_coefficient_bps, execution.queue_exponent) == used


def test_what_the_parameters_say_stands() -> None:
    said = load("smoke", {"execution": {"impact_coefficient_bps": 10, "queue_exponent": 2}})
    assert as_measured(said, laws(71.0, 1.4)).execution == said.execution


def test_an_unknown_exponent_spreads_cancels_evenly_and_an_unknown_lambda_is_asked_for() -> None:
    assert as_measured(load("smoke"), laws(71.0, np.nan)).execution.queue_exponent == 1.0
    with pytest.raises(ParameterError, match="impact_coefficient_bps"):
        as_measured(load("smoke"), laws(np.nan, 1.0))
