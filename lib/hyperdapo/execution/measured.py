"""What the parameters leave to the market: null stands for what 03 measured (`laws.parquet`)."""

import numpy as np
import pandas as pd

from hyperdapo.errors import ParameterError
from hyperdapo.schema import Parameters

EVENLY = 1.0  # the queue's exponent where the orders of others tell too little: cancels spread over the queue


def as_measured(parameters: Parameters, laws: pd.DataFrame) -> Parameters:
    """These parameters with the market's own numbers where `execution` has none.

    Parameters
    ----------
    laws : `parameter`, `value`; of them `lambda_bps` (eq. 2.4; below zero, as little data can give, counts as none:
        nobody is paid for his impact) and `queue_exponent` (NaN where it could not be told)

    Raises
    ------
    ParameterError
        If 03 could not tell lambda, and the parameters do not either.
    """
    execution, measured = parameters.execution, laws.set_index("parameter")["value"].astype(float)
    coefficient, exponent = execution.impact_coefficient_bps, execution.queue_exponent
    if coefficient is None:
        coefficient = max(float(measured["lambda_bps"]), 0.0)
    if np.isnan(coefficient):
        raise ParameterError("03 could not measure eq. 2.4: set execution.impact_coefficient_bps to a number")
    if exponent is None:
        exponent = float(measured["queue_exponent"])
        exponent = EVENLY if np.isnan(exponent) else exponent
    told = {"impact_coefficient_bps": coefficient, "queue_exponent": exponent}
    return parameters.model_copy(update={"execution": execution.model_copy(update=told)})
