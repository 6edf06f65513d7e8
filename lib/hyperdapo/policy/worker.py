"""One of several processes that train together; `runs.launch` starts them."""

import pickle
import sys
from pathlib import Path

from hyperdapo.family import die_with_parent
from hyperdapo.policy.training import Workbench


def main(file: Path) -> None:
    """Do the job that lies in a file, for as long as torchrun lives."""
    die_with_parent()
    bench, job = pickle.loads(file.read_bytes())
    algorithm, seed, folder = job
    Workbench(*bench).train(algorithm, seed, folder, lambda looked: None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
