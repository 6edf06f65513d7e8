"""Fees by date and tier, and eq. 2.4."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from hyperdapo.errors import ParameterError
from hyperdapo.execution.costs import fee_rates, square_root_impact, with_measured_impact
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


def measured(value: float) -> pd.DataFrame:
    return pd.DataFrame({"parameter": ["c_bps", "lambda_bps"], "value": [1.0, value]})


def test_lambda_is_what_was_measured_unless_the_parameters_say_otherwise() -> None:
    said = load("smoke", {"execution": {"impact_coefficient_bps": 10}})
    assert with_measured_impact(load("smoke"), measured(71.0)).execution.impact_coefficient_bps == 71.0
    assert with_measured_impact(load("smoke"), measured(-3.0)).execution.impact_coefficient_bps == 0.0
    assert with_measured_impact(said, measured(71.0)) is said


def test_a_lambda_that_could_not_be_measured_has_to_be_said() -> None:
    with pytest.raises(ParameterError, match="impact_coefficient_bps"):
        with_measured_impact(load("smoke"), measured(np.nan))
