"""What is language for? A study of its own: `hyperdapo study`, of a run whose stages up to 04 are computed."""

import pandas as pd

from hyperdapo.evidence.figures.policy import plot_language
from hyperdapo.evidence.figures.style import save
from hyperdapo.evidence.gaps import language_gaps
from hyperdapo.evidence.tables import CSV_FLOAT
from hyperdapo.files import atomic, write_table
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy.language.study import decide

NAME = "language"


def study(parameters: Parameters) -> str:
    """Train and ask every policy of the study, and leave `language.parquet` in the data folder of the run and table and
    figure in `outputs/RUN/study/`; returns the table as text. What there is so far is left after each policy.

    Raises
    ------
    MissingInputError
        If 03 or 04 has not run.
    ModelError
        If the base cannot be had.
    """
    paths, rows = Paths(parameters.name), list[pd.DataFrame]()
    for decided in decide(parameters):
        rows.append(decided)
        table = _leave(pd.concat(rows, ignore_index=True), parameters, paths)
    return table.drop(columns=["seeds", "blocks"]).round(3).to_string(index=False)


def _leave(decided: pd.DataFrame, parameters: Parameters, paths: Paths) -> pd.DataFrame:
    write_table(decided, paths.data, NAME)
    table = language_gaps(decided, parameters.evidence, parameters.seed)
    with atomic(paths.outputs / "study" / f"{NAME}.csv") as temporary:
        table.to_csv(temporary, index=False, float_format=CSV_FLOAT, lineterminator="\n")
    return table
