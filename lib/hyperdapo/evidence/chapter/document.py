r"""Writes `outputs/<profile>/thesis/`: Chapter 5 whole, its tables and sentences one by one, its numbers, and its map.

`main.tex` compiles by itself (`pdflatex main`, twice); a thesis of its own takes `preamble.tex` and `chapter5.tex`.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from hyperdapo.evidence import provenance
from hyperdapo.evidence.chapter import designs, findings, statement
from hyperdapo.evidence.chapter.book import Book
from hyperdapo.evidence.chapter.layout import Table
from hyperdapo.evidence.convergence import SEARCH
from hyperdapo.files import atomic
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths

FOLDER = "thesis"
SECTIONS = {  # of each its title, what it asks, its tables, and its figures
    "training": (
        "Training",
        "Did the policies learn anything that holds on states they have not seen, and does DAPO learn more than DPO?",
        ("dataset", "learning"),
        ("convergence_learning", "convergence_under_way", "learning_gap", "specialists"),
    ),
    "execution": (
        "Execution",
        "What does each strategy cost on the same parent orders, where does a difference come from, and are the "
        "fills true?",
        ("main", "decomposition", "fills"),
        ("main", "distribution", "decomposition"),
    ),
    "significance": (
        "Significance",
        "Is any difference real? What is claimed was registered before the test orders were read; all else is "
        "secondary.",
        ("hypotheses",),
        ("hypotheses", "cumulative", "size_power", "forest", "independence"),
    ),
    "conditions": (
        "Market conditions",
        "Is the policy better in some markets than in others?",
        ("conditions",),
        ("conditions", "worlds"),
    ),
    "limits": (
        "Limits",
        "What of the draft's claims can be said of this run, and what bounds all of it?",
        ("claims",),
        (),
    ),
}
_PREAMBLE = r"""% Generated; do not edit. What Chapter 5 needs.
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{textcomp,lmodern,amsmath,booktabs,graphicx,siunitx,microtype}
\usepackage[font=small,labelfont=bf]{caption}
\usepackage[hidelinks]{hyperref}
\sisetup{detect-weight=true,mode=text,group-digits=integer,group-separator={,},group-minimum-digits=4}
\providecommand{\hdfigures}{../figures}
"""
_MAIN = r"""% Generated; do not edit. Chapter 5 by itself: pdflatex main, twice.
\documentclass[11pt,a4paper]{report}
\usepackage[margin=2.5cm]{geometry}
\input{preamble}
\begin{document}
\setcounter{chapter}{4}
\input{chapter5}
\end{document}
"""


def write(frames: Mapping[str, pd.DataFrame], parameters: Parameters, paths: Paths) -> list[Path]:
    """Write the chapter and `numbers.tex` from the frames of 09 by name, and `convergence`; return the files.

    Figures are included as far as the run has saved them.
    """
    book, policy = Book(), parameters.hypotheses.policy
    tables = designs.designed(frames, policy, "best_fixed", book, statement.WORLDS[parameters.source.kind])
    trials = int(pd.read_csv(SEARCH).query("algorithm == @policy")["trial"].nunique())
    texts = findings.findings(frames, policy, "best_fixed", trials, book)
    files = {f"table_{table.name}.tex": table.latex() for table in tables}
    files |= {f"findings_{section}.tex": text for section, text in texts.items()}
    files |= {"preamble.tex": _PREAMBLE, "main.tex": _MAIN, "chapter5.tex": chapter(tables, paths)}
    files |= {"numbers.md": book.index(), "map.md": statement.item_map(tables, parameters, paths)}
    files |= {"reproducibility.md": statement.reproducibility(frames, parameters, paths)}
    written = [_write(paths.outputs / "numbers.tex", book.macros())]
    return written + [_write(paths.outputs / FOLDER / name, text) for name, text in files.items()]


def chapter(tables: list[Table], paths: Paths) -> str:
    """The chapter's own file: sections that put sentences, tables and figures together."""
    known = {table.name for table in tables}
    lines = ["% Generated; do not edit.", r"\input{../numbers}", r"\chapter{Results}\label{ch:results}"]
    for section, (title, question, own, figures) in SECTIONS.items():
        lines += ["", rf"\section{{{title}}}\label{{sec:{section}}}", question, "", rf"\input{{findings_{section}}}"]
        lines += [rf"\input{{table_{name}}}" for name in own if name in known]
        lines += [_figure(name) for name in figures if (paths.figures / f"{name}.tex").is_file()]
        lines.append(r"\clearpage")
    return "\n".join([*lines, ""])


def _figure(name: str) -> str:
    picture = rf"\includegraphics[width=\linewidth]{{\hdfigures/{name}.pdf}}"
    return rf"\begin{{figure}}[htbp]\centering {picture}\input{{\hdfigures/{name}}}\end{{figure}}"


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    provenance.note(path)
    return path
