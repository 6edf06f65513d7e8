"""A finished run on a span that nobody has seen (`hyperdapo judge`): nothing is trained, chosen or fitted anew.

Its adapters decide, its rules and rivals are those of its training split, its laws are those that it measured; the
hypotheses are the registered ones. So an examiner tests the thesis on a new day.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from hyperdapo import plan, stages
from hyperdapo.errors import ParameterError
from hyperdapo.evidence import tables
from hyperdapo.evidence.hypotheses import registered
from hyperdapo.evidence.hypotheses.ledger import open_test
from hyperdapo.execution.laws import as_measured
from hyperdapo.files import checksum_of, read_json, read_table, require, write_table
from hyperdapo.market.features import features_in_parts
from hyperdapo.params import Parameters, load, merge, overrides_of, recall
from hyperdapo.paths import Paths
from hyperdapo.stages import backtest, inference, preference_pairs

_MARKET = ("01_download", "02_preprocess")
_NO_CHOICE = ("profile", "name", "source")  # what else differs from the run would be another experiment


def judge(run: str, overrides: Mapping[str, Any]) -> tuple[Parameters, pd.DataFrame]:
    """The registered hypotheses on another span, with what a finished run has learned.

    Parameters
    ----------
    run : its name
    overrides : `source`, and a `name` for the folders if wanted

    Returns
    -------
    The parameters of the span, and `registered.judge`, which is in `tables/hypotheses.csv` of its outputs too; the
    ledger of the run has a line more.

    Raises
    ------
    ParameterError
        If there is no such run, anything but the source would change, or the spans overlap.
    MissingInputError
        If the run is not finished.
    And as the stages 01 to 03, 07 and 08 do.
    """
    learned = recall(run)
    parameters = unseen(learned, overrides)
    for asset in parameters.assets:
        _execute(parameters, Paths(parameters.name, asset), Paths(learned.name, asset))
    paths = Paths(parameters.name)
    orders = open_test(
        paths, parameters, f"judge {run} from {parameters.source.start:%Y-%m-%d %H:%M}", Paths(learned.name)
    )
    judged = registered.judge(orders, parameters.hypotheses, parameters.evidence, parameters.seed)
    tables.save(judged, paths, "hypotheses", f"The registered hypotheses, with what {run} learned, on a span unseen")
    return parameters, judged


def unseen(learned: Parameters, overrides: Mapping[str, Any]) -> Parameters:
    """The parameters of a run on another span; raises ParameterError as `judge`."""
    own = {name: value for name, value in overrides_of(learned).items() if name != "name"}
    parameters = load(learned.profile, merge(own, overrides))
    ours, theirs = (one.model_dump(mode="json", exclude=set(_NO_CHOICE)) for one in (parameters, learned))
    if other := [name for name in ours if ours[name] != theirs[name]]:
        raise ParameterError(f"a run is judged as it was trained: only source may differ, not {', '.join(other)}")
    new, old = parameters.source, learned.source
    if (new.kind, new.endpoint) == (old.kind, old.endpoint) and new.start_ns < old.end_ns and old.start_ns < new.end_ns:
        raise ParameterError(
            f"{learned.name} has seen {old.start:%Y-%m-%d %H:%M} to {old.end:%Y-%m-%d %H:%M}: give a source.from and "
            "source.to outside it"
        )
    return parameters


def _execute(parameters: Parameters, paths: Paths, of: Paths) -> None:
    """01 to 03 of one asset on the new span, all of it test; then 07 and 08 with what the run `of` it has learned."""
    require(of.data / "decisions.parquet", "07_inference", of.name)
    for stage in _MARKET:
        stages.compute(stage, parameters, paths.asset)
    _lend(of, paths)
    span = read_json(paths.data, "split.json")
    test = {"test": (span["train"][0], span["test"][1])}
    known, earlier = read_table(of.data, "features"), read_table(of.data, "outcomes")
    here = pd.concat(features_in_parts(paths.data, parameters, test), ignore_index=True)
    here.index += len(known)  # an order is called after its row
    measured = as_measured(parameters, read_table(paths.data, "laws"))
    _, outcomes = preference_pairs.replay(measured, paths, here)
    write_table(pd.concat([known, here]), paths.data, "features")
    write_table(pd.concat([earlier[earlier["split"] == "train"], outcomes], ignore_index=True), paths.data, "outcomes")
    untimed = parameters.inference.model_copy(update={"timed": []})  # how fast it decides is no question of the span
    inference.compute(parameters.model_copy(update={"inference": untimed}), paths)
    backtest.compute(parameters, paths, trained_on=of)


def _lend(of: Paths, paths: Paths) -> None:
    """Link adapters, laws and what else of the training split 07 and 08 read."""
    for source in (of.data / name for name in ("laws.parquet", *plan.WRITES["04_preference_pairs"])):
        if source.exists():
            for one in (source, checksum_of(source)):
                _link(one, paths.data / one.relative_to(of.data))
    for source in of.models.rglob("*"):
        if source.is_file():
            _link(source, paths.models / source.relative_to(of.models))


def _link(source: Path, target: Path) -> None:
    """A file of a run in another folder; files are never changed in place, so both may share it."""
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another disk
            shutil.copy2(source, target)
