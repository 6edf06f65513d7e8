"""What is looked at before anything runs, so that nobody learns after hours that a file, a model or a name is wrong."""

from collections.abc import Sequence
from datetime import UTC, datetime

from hyperdapo.errors import MissingInputError, ParameterError
from hyperdapo.params import Parameters
from hyperdapo.sections import Policy
from hyperdapo.times import SECOND_NS

_ACCOUNT_FILES = ("historicalOrders.json", "userFills.json")
_BUILT_IN = ("smollm2-135m", "tiny-qwen2", "rehearsal-qwen2")
_LAYERS_OF_LLAMA_AND_QWEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def check(parameters: Parameters, stages: Sequence[str]) -> None:
    """Look at what `stages` will need beside each other's files.

    Raises
    ------
    MissingInputError
        If a folder or file that a parameter names is not there.
    ParameterError
        If the span lies in the future, or has no room for what the stages do with it.
    ModelError
        If the base model cannot be had, or has no layer that `policy.lora.targets` names.
    """
    numbers = {int(stage[:2]) for stage in stages}
    if 1 in numbers:
        _check_source(parameters)
    if numbers & {4, 5, 7, 8}:
        _check_room(parameters)
    if 8 in numbers:
        _check_truth(parameters)
    if numbers & {5, 6, 7}:
        _check_base(parameters.policy)
    if 7 in numbers and parameters.inference.gguf is not None:
        from hyperdapo.policy.path import llama_cpp  # torch, as below

        llama_cpp.available(parameters)


def _check_source(parameters: Parameters) -> None:
    source = parameters.source
    if source.folder is not None and not source.folder.is_dir():
        files = "the archive's days" if source.kind == "archive" else "recordings ASSET.ndjson.gz"
        raise MissingInputError(f"source.endpoint: there is no folder {source.folder}; copy {files} into it")
    if source.kind == "tardis" and source.end_ns > datetime.now(UTC).timestamp() * SECOND_NS:
        raise ParameterError(f"source.to: {source.end.isoformat()} has not come yet; nobody has recorded it")


def _check_room(parameters: Parameters) -> None:
    """The three splits stand behind the warm-up, with a horizon and a feature window cut out between them."""
    if parameters.source.kind == "archive":
        raise ParameterError(
            "source.kind archive has books only, and an order cannot be replayed without trades: run --until 02"
        )
    features, horizon_s = parameters.features, parameters.orders.longest_horizon_s
    span_s = (parameters.source.end_ns - parameters.source.start_ns) / SECOND_NS
    least_s = features.warmup_s + 2 * (features.window_s + horizon_s)
    if span_s <= least_s:
        raise ParameterError(
            f"source.from and source.to are {span_s / 60:g} minutes apart; a warm-up of {features.warmup_s:g} s and, "
            f"between the splits, twice a window ({features.window_s:g} s) and a horizon ({horizon_s:g} s) take "
            f"{least_s / 60:g}: lengthen the span, or lower features.warmup_s"
        )


def _check_truth(parameters: Parameters) -> None:
    folder, fills = parameters.truth.account_folder, parameters.truth.node_fills_file
    wanted = [("truth.account", folder / name) for name in _ACCOUNT_FILES] if folder else []
    wanted += [("truth.node_fills", fills)] if fills else []
    for key, path in wanted:
        if not path.is_file():
            raise MissingInputError(f"{key}: there is no file {path}")
    level3 = parameters.truth.level3_folder
    if level3 and not level3.is_dir():
        raise MissingInputError(f"truth.level3: there is no folder {level3}")


def _check_base(policy: Policy) -> None:
    if policy.base_model in _BUILT_IN and set(policy.lora.targets) <= _LAYERS_OF_LLAMA_AND_QWEN:
        return
    from hyperdapo.policy.models import check_targets  # torch takes seconds to import

    check_targets(policy)
