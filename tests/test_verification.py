"""Verification notices every number that moved, went or came."""

import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from hyperdapo.errors import DataError, HyperdapoError, MissingInputError
from hyperdapo.evidence import verification
from hyperdapo.evidence.verification import committed_outputs, compare, verify

TOLERANCE = 1e-6


@pytest.fixture
def finished(tmp_path) -> tuple[Path, Path]:
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "tables").mkdir(parents=True)
    frame = pd.DataFrame({"asset": ["BTC", "ETH"], "value": [1.5, float("nan")], "forward_measured_ms": [3.0, 4.0]})
    frame.to_csv(one / "tables/metrics.csv", index=False)
    (one / "tables/latency_BTC.csv").write_text("way,median_measured_ms,passes\nscore,3.25,1\n")
    (one / "numbers.tex").write_text("\\newcommand{\\HdBtc}{1.5}\n")
    shutil.copytree(one, two)
    return one, two


def _edit(folder: Path, old: str, new: str) -> None:
    table = folder / "tables/metrics.csv"
    table.write_text(table.read_text().replace(old, new))


def test_the_same_run_matches(finished, capsys) -> None:
    verify(*finished, tolerance=0.0)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "3 of 3 numbers match (relative tolerance 0)"
    assert any(line.startswith("tables/latency_BTC.csv") and line.endswith("time, not compared") for line in printed)


def test_measured_times_are_not_compared(finished) -> None:
    _edit(finished[1], "3.0", "9.0")
    latency = finished[1] / "tables/latency_BTC.csv"
    latency.write_text(latency.read_text().replace("3.25", "8"))
    assert compare(*finished, 0.0).same.all()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("1.5", "1.50001", "BTC, value: 1.5 came back as 1.50001"),
        ("1.5", "", "BTC, value: 1.5 came back as an empty cell"),
        ("BTC", "SOL", "SOL, value: nothing came back as 1.5"),
        ("ETH,,4.0\n", "", "ETH, value: an empty cell came back as nothing"),
        ("ETH,,4.0\n", "ETH,,4.0\nETH,2.5,4.0\n", "ETH #1, value: nothing came back as 2.5"),
    ],
)
def test_a_number_that_moved_is_named(finished, capsys, old: str, new: str, told: str) -> None:
    _edit(finished[1], old, new)
    with pytest.raises(HyperdapoError, match="differ"):
        verify(*finished, TOLERANCE)
    printed = capsys.readouterr().out
    assert f"tables/metrics.csv: {told}" in printed and "match" in printed.splitlines()[-1]


def test_a_small_difference_is_within_the_tolerance(finished) -> None:
    _edit(finished[1], "1.5", "1.5000001")
    assert compare(*finished, 1e-6).same.all() and not compare(*finished, 1e-9).same.all()


def test_two_rounded_zeros_are_the_same(finished) -> None:
    _edit(finished[0], "1.5", "8.9e-16")
    _edit(finished[1], "1.5", "-4.4e-16")
    assert compare(*finished, TOLERANCE).same.all()


@pytest.mark.parametrize("name", ["numbers.tex", "tables/metrics.csv"])
def test_a_file_on_one_side_only_fails(finished, name: str) -> None:
    one, two = finished
    (two / name).unlink()
    assert not compare(one, two, 1.0).same.all() and not compare(two, one, 1.0).same.all()


def test_nothing_to_compare_is_an_error(tmp_path) -> None:
    with pytest.raises(DataError):
        compare(tmp_path, tmp_path, 0.0)
    with pytest.raises(MissingInputError, match="--reference"), committed_outputs("no-such-profile"):
        pass
    with pytest.raises(MissingInputError, match="no folder"), committed_outputs("smoke", tmp_path / "absent"):
        pass


def test_the_reference_is_what_was_committed(finished, tmp_path, monkeypatch) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(finished[0], repository / "outputs/smoke")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "outputs"]):
        subprocess.run(["git", "-C", str(repository), *command], check=True)
    (repository / "outputs/smoke/numbers.tex").write_text("changed since\n")
    monkeypatch.setattr(verification, "REPOSITORY", repository)
    with committed_outputs("smoke") as reference:
        assert compare(reference, finished[1], 0.0).same.all()
