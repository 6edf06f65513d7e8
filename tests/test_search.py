"""The parameters of the algorithms are those that were best in the committed log of their search."""

import importlib
import re
import shlex
from collections import Counter
from types import ModuleType

import pandas as pd
import pytest

from hyperdapo.evidence.convergence import SEARCH, best_trials, cost_of_search
from hyperdapo.params import load
from hyperdapo.paths import REPOSITORY
from hyperdapo.policy.losses import ALGORITHMS, settings_of


@pytest.fixture(scope="module")
def search() -> pd.DataFrame:
    return pd.read_csv(SEARCH)


def test_every_algorithm_is_searched(search: pd.DataFrame) -> None:
    assert set(search["algorithm"]) == set(ALGORITHMS)


def test_every_algorithm_had_the_same_trials(search: pd.DataFrame) -> None:
    """As many points, as many of them in the second round, on the same assets with the same seeds."""
    for _, trainings in search.groupby("algorithm"):
        met = Counter(zip(trainings["asset"], trainings["seed"], strict=True))
        assert met == {("ETH", 0): 8, ("ETH", 1): 3, ("BTC", 0): 3, ("BTC", 1): 3}
    for _, tried in search.groupby("trial"):
        for name in ("learning_rate", "temperature_bps", "beta", "entropy_bonus", "advantage_unit_bps"):
            assert len(set(tried[name].dropna())) <= 1, "one point, for all that have such a parameter"


def test_the_parameters_are_those_of_the_best_trial(search: pd.DataFrame) -> None:
    """Of two digits, as they were tried; run `benchmarks/_search.py` anew where the log is of another world."""
    for algorithm, best in best_trials(search).items():
        standing = settings_of(algorithm, load("sample").training)
        assert {name: standing[name] for name in best} == best, algorithm


def test_the_best_on_average_of_those_that_came_through_is_chosen(search: pd.DataFrame) -> None:
    closed = {0: [0.9], 1: [0.3, 0.5], 2: [0.5, 0.3], 3: [0.8, float("nan")]}
    rows = [("dpo", trial, 0.1 * trial, gap) for trial, gaps in closed.items() for gap in gaps]
    assert best_trials(pd.DataFrame(rows, columns=["algorithm", "trial", "beta", "gap_closed"])) == {
        "dpo": {"beta": 0.1}
    }
    cost = cost_of_search().set_index("algorithm")
    assert set(cost["trials"]) == {8} and cost["search_s"].sum() == pytest.approx(search["seconds"].sum())


class TestItsCommand:
    """`benchmarks/_search.py`, as documents call it."""

    @pytest.fixture
    def script(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
        return importlib.import_module("_search")

    @pytest.mark.parametrize("file", ["docs/a100.md", "CONTRIBUTING.md", "benchmarks/_search.py"])
    def test_what_documents_call_can_be_called(self, script: ModuleType, file: str) -> None:
        calls = re.findall(r"_search\.py((?: --[^`\n]*)?)", (REPOSITORY / file).read_text())
        assert any(calls)
        for call in calls:
            script.parse(shlex.split(call.replace("NAME", "dapo")))

    @pytest.mark.parametrize(
        "words", [["--profiles", "free"], ["--assets", "SOL"], ["--algorithms", "dpo"], ["--algorithms", "ppo"]]
    )
    def test_the_committed_log_is_not_lost_to_another_search(self, script: ModuleType, words: list[str]) -> None:
        with pytest.raises(SystemExit):
            script.parse(words)

    def test_a_search_of_another_world_goes_into_its_log(
        self, script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path
    ) -> None:
        monkeypatch.setattr(script, "workbench", lambda profile, asset: (profile, asset))
        monkeypatch.setattr(script, "gap", lambda bench, profile, algorithm, tried, seed: tried["learning_rate"])
        log = tmp_path / "free.csv"
        monkeypatch.setattr(script.sys, "argv", ["", "--profiles", "free", "--assets", "SOL", "--log", str(log)])
        script.main()
        tried = pd.read_csv(log)
        assert set(tried["asset"]) == {"SOL"} and set(tried["algorithm"]) == set(ALGORITHMS)
        assert Counter(tried["seed"]) == {0: 8 * len(ALGORITHMS), 1: 3 * len(ALGORITHMS)}
        again = tried[tried["seed"] == 1]
        assert again["free_gap"].min() >= tried["free_gap"].median(), "the best come into the second round"
