"""What can be watched while training runs: a figure in the notebook, and the dashboard page of all runs."""

from time import monotonic

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import HTML, display

from hyperdapo.evidence import convergence_figures, policy_figures
from hyperdapo.evidence.convergence import logs_so_far
from hyperdapo.evidence.figures import preview
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths, atomic

_REFRESH_S = 15


class Watch:
    """Called as often as there is news, it shows them at most every few seconds (Listing 4.11)."""

    def __init__(self, parameters: Parameters, paths: Paths) -> None:
        self._parameters, self._paths = parameters, paths
        self._shown = monotonic()
        self._place = display(HTML(""), display_id=True) if InteractiveShell.initialized() else None

    def __call__(self) -> None:
        if monotonic() - self._shown < _REFRESH_S:
            return
        if self._place is not None:
            log = logs_so_far(self._paths, [self._paths.asset])
            self._place.update(preview(policy_figures.plot_training(log, self._paths.asset)))
        write_dashboard(self._parameters, self._paths, refresh_s=_REFRESH_S)
        self._shown = monotonic()

    def close(self) -> None:
        """Clear the place of the figure once there is a final one."""
        if self._place is not None:
            self._place.update(HTML(""))


def write_dashboard(parameters: Parameters, paths: Paths, refresh_s: int | None = None) -> None:
    """`dashboard.html` of all runs so far; it loads itself again every `refresh_s`, and holds all that it needs."""
    page = convergence_figures.dashboard(logs_so_far(paths, parameters.assets))
    html = page.to_html(include_plotlyjs=True, div_id="training")
    if refresh_s is not None:
        html = html.replace("<head>", f'<head><meta http-equiv="refresh" content="{refresh_s}">', 1)
    with atomic(paths.outputs / "dashboard.html") as temporary:
        temporary.write_text(html)
