"""Verification notices every number that moved, went or came."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from hyperdapo.errors import DataError, HyperdapoError, MissingInputError
from hyperdapo.evidence.verification import committed_outputs, compare, verify


@pytest.fixture
def finished(tmp_path) -> tuple[Path, Path]:
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "tables").mkdir(parents=True)
    frame = pd.DataFrame({"asset": ["BTC", "ETH"], "value": [1.5, float("nan")], "forward_measured_ms": [3.0, 4.0]})
    frame.to_csv(one / "tables/metrics.csv", index=False)
    (one / "numbers.tex").write_text("\\newcommand{\\HdBtc}{1.5}\n")
    shutil.copytree(one, two)
    return one, two


def test_the_same_run_matches(finished, capsys) -> None:
    verify(*finished, tolerance=0.0)
    assert "numbers match" in capsys.readouterr().out.splitlines()[-1]


def test_measured_times_are_not_compared(finished) -> None:
    table = finished[1] / "tables/metrics.csv"
    table.write_text(table.read_text().replace("3.0", "9.0"))
    assert compare(*finished, 0.0).same.all()


@pytest.mark.parametrize(("old", "new"), [("1.5", "1.50001"), ("BTC", "SOL"), ("1.5", "")])
def test_a_number_that_moved_is_named(finished, capsys, old: str, new: str) -> None:
    table = finished[1] / "tables/metrics.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(HyperdapoError, match="differ"):
        verify(*finished, tolerance=1e-6)
    assert "tables/metrics.csv" in capsys.readouterr().out


def test_a_small_difference_is_within_the_tolerance(finished) -> None:
    table = finished[1] / "tables/metrics.csv"
    table.write_text(table.read_text().replace("1.5", "1.5000001"))
    assert compare(*finished, 1e-6).same.all() and not compare(*finished, 1e-9).same.all()


def test_a_missing_file_fails(finished) -> None:
    (finished[1] / "numbers.tex").unlink()
    assert not compare(*finished, 1.0).same.all()


def test_nothing_to_compare_is_an_error(tmp_path) -> None:
    with pytest.raises(DataError):
        compare(tmp_path, tmp_path, 0.0)
    with pytest.raises(MissingInputError, match="--reference"), committed_outputs("no-such-profile"):
        pass
