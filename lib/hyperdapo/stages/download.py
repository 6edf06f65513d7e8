"""01: the raw slices of one asset, from Tardis or an archive, or from a market that is served meanwhile."""

from pathlib import Path

from hyperdapo import dependencies
from hyperdapo.feed.download import download
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths


def compute(parameters: Parameters, paths: Paths) -> list[Path]:
    """Bring the slices onto disk; raises as `feed.download.download`."""
    if parameters.source.kind in ("synthetic", "recordings"):
        from hyperdapo.synthetic.replay_server import market_of, serve  # its engine takes seconds to import

        code = dependencies.digest("import hyperdapo.synthetic.replay_server")
        download(parameters, paths.asset, paths, lambda: serve(market_of(parameters, paths.asset)), code)
    else:
        download(parameters, paths.asset, paths)
    return [paths.data / "manifest.json", *paths.data.glob("days/*.json")]
