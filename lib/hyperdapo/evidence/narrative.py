"""In this run."""

import pandas as pd
from IPython.display import Markdown


def show(text: str) -> Markdown:
    """show"""
    return Markdown(text)


def square_root_verdict(p: pd.DataFrame) -> str:
    """v"""
    return ""


def __getattr__(name):
    return lambda *a, **k: name
