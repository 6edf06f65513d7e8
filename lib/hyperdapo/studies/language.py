"""What is language for? A study of its own: `hyperdapo study`, of a run whose stages up to 04 are computed."""

import pandas as pd

from hyperdapo.evidence.figures import style
from hyperdapo.evidence.figures.policy import plot_language
from hyperdapo.evidence.gaps import language_gaps
from hyperdapo.evidence.tables import CSV_FLOAT
from hyperdapo.files import atomic, write_table
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths
from hyperdapo.policy.language.study import decide


def study(parameters: Parameters) -> str:
    """Train and ask every policy of the study; what there is so far is left after each of them.

    Rows by state go into `language.parquet` in the run's data folder; table and figure into `outputs/RUN_language/`.

    Returns
    -------
    The table as text.

    Raises
    ------
    MissingInputError
        If 03 or 04 has not run.
    ModelError
        If the base cannot be had.
    """
    paths, rows, table = Paths(parameters.name), list[pd.DataFrame](), pd.DataFrame()
    for decided in decide(parameters):
        rows.append(decided)
        table = _leave(pd.concat(rows, ignore_index=True), parameters, paths)
    with atomic(paths.language / "language.png") as temporary:
        temporary.write_bytes(style.preview(plot_language(table)).data)
    shown = ["asset", "trained_on", "policy", "states", "wording", "minus_fixed_bps", "ci_low", "ci_high", "gap_closed"]
    text: str = table[shown].round(3).to_string(index=False)
    return text


def _leave(decided: pd.DataFrame, parameters: Parameters, paths: Paths) -> pd.DataFrame:
    write_table(decided, paths.data, "language")
    table = language_gaps(decided, parameters.evidence, parameters.seed)
    with atomic(paths.language / "language.csv") as temporary:
        table.to_csv(temporary, index=False, float_format=CSV_FLOAT, lineterminator="\n")
    return table
