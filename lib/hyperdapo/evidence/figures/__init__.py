"""The figures of the thesis: one style, one `save`, a module for each notebook."""

from hyperdapo.evidence.figures.style import save

__all__ = ["save"]
