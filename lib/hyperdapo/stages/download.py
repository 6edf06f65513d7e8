"""01: the raw slices of one asset, from Tardis, an archive, or the synthetic exchange, which is served meanwhile."""

from pathlib import Path

from hyperdapo import dependencies
from hyperdapo.feed.download import download
from hyperdapo.params import Parameters
from hyperdapo.paths import Paths


def compute(parameters: Parameters, paths: Paths) -> list[Path]:
    """Bring the slices onto disk; raises as `feed.download.download`."""
    if parameters.source.kind == "synthetic":
        from hyperdapo.synthetic.replay_server import serve, synthetic_market  # its engine takes seconds to import

        engine = dependencies.digest("import hyperdapo.synthetic.replay_server")
        download(parameters, paths.asset, paths, lambda: serve(synthetic_market(parameters, paths.asset)), engine)
    else:
        download(parameters, paths.asset, paths)
    return [paths.data / "manifest.json", *paths.data.glob("days/*.json")]
