"""Tables, numbers and figures: written whole, the same each time, and safe for LaTeX."""

import numpy as np
import pandas as pd
import pytest

from hyperdapo.evidence import figures, numbers, provenance, tables
from hyperdapo.params import load
from hyperdapo.paths import Paths


@pytest.fixture
def paths(tmp_path, monkeypatch) -> Paths:
    monkeypatch.setenv("HYPERDAPO_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("HYPERDAPO_DATA", str(tmp_path / "data"))
    return Paths("smoke", "BTC")


def test_a_table_is_csv_and_booktabs(paths: Paths) -> None:
    frame = pd.DataFrame({"strategy": ["best_fixed", "50 % & more"], "total_cost_bps": [1.23456789012, np.nan], "significant": [True, False]})
    shown = tables.save(frame, paths, "one", "A caption with 5 % & an _underscore_")
    back = pd.read_csv(paths.tables / "one.csv")
    assert back["total_cost_bps"].iloc[0] == 1.23456789012
    text = (paths.tables / "one.tex").read_text()
    assert r"\toprule" in text and r"50 \% \& more" in text and "Total cost (bps)" in text and r"\_underscore\_" in text
    assert "1.23" in shown.data and "yes" in shown.data


def test_macros_have_letters_only_and_are_sorted() -> None:
    text = numbers.macros({("ETH", "dapo", "markout_60s_bps"): -1.5, ("BTC", "best_fixed", "fill_rate"): 0.123456})
    lines = text.splitlines()[1:]
    assert lines == sorted(lines)
    assert r"\newcommand{\HdBtcBestFixedFillRate}{0.1235}" in text
    assert r"\newcommand{\HdEthDapoMarkoutSixZeroSBps}{-1.5}" in text
    with pytest.raises(ValueError, match="two numbers are called"):
        numbers.macros({("a", "b"): 1.0, ("a_b",): 2.0})


@pytest.mark.parametrize(("value", "text"), [(123456.0, "123456"), (0.00001234, "0.00001234"), (float("nan"), "–"), (5.0, "5")])
def test_numbers_have_no_exponent(value: float, text: str) -> None:
    assert numbers.number(value) == text


def test_claims_that_were_not_measured_say_so() -> None:
    table = numbers.claims_table({"fill_rate": "61 %"})
    assert table["measured"].tolist().count("not measured here") == len(numbers.CLAIMS) - 1


def test_figures_are_the_same_each_time(paths: Paths) -> None:
    files = [paths.figures / "line.pdf", paths.figures / "line.png"]
    contents = []
    for _ in range(2):
        figure, axis = figures.new()
        axis.plot([1, 2, 3])
        figures.save(figure, paths, "line")
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1] and b"CreationDate" not in contents[0][0]
    assert figure.get_figwidth() == figures.TEXT_WIDTH_IN


def test_the_manifest_holds_the_hash_of_every_table(paths: Paths) -> None:
    import json

    tables.save(pd.DataFrame({"a": [1.0]}), paths, "one", "One")
    numbers.save({("a",): 1.0}, paths)
    manifest = json.loads(provenance.write_manifest(load("smoke"), paths).read_text())
    assert {"tables/one.csv", "tables/one.tex", "numbers.tex"} == set(manifest["files"])
    assert manifest["parameters"] == load("smoke").fingerprint() and manifest["versions"]["torch"].startswith("2.13.0")


def test_the_stamp_names_its_files(paths: Paths) -> None:
    numbers.save({("a",): 1.0}, paths)
    shown = provenance.stamp(load("smoke"), paths, "09_significance", [paths.outputs / "numbers.tex"])
    assert "numbers.tex" in shown.data and load("smoke").fingerprint() in shown.data
    with pytest.raises(FileNotFoundError):
        provenance.stamp(load("smoke"), paths, "09_significance", [paths.outputs / "absent.tex"])
