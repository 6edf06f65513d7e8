"""What an adapter was trained for. Loading checks it: its letters mean nothing without their list of actions."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hyperdapo.actions import Action
from hyperdapo.errors import ModelError
from hyperdapo.params import Parameters
from hyperdapo.paths import GENERALIST, STUDY, option
from hyperdapo.policy.prompts import FEATURES, version

NAME = "policy.json"

_OTHER_CODE = "check out the version of this package that trained it"
_MEND = {
    "base": "set policy.base_model back",
    "revision": "fetch that revision of the base",
    "layers": "set policy.lora.layers back",
    "activated": "set policy.lora.activated back",
    "actions": "set policy.actions back",
    "prompt_style": "set policy.prompt_style back",
    "prompt": _OTHER_CODE,
    "features": _OTHER_CODE,
    "dtype": "decide where it is the same (bfloat16 with a GPU, float32 without)",
    "four_bit": "set policy.four_bit back",
    "objectives": "set orders.objectives back",
    "decide_again_s": "set policy.decide_again_s back",
}


class Manifest(BaseModel):
    """What decides the meaning of an adapter's weights, its letters and its prompts; `policy.json` beside it.

    `base` is a hub id (or the name of a base that is made here), `layers` how many upper layers it acts on, `prompt`
    the version of the prompt's text (`prompts.version`). `dtype` is that in which the base computes, `decide_again_s`
    how often one that may keep its order decides; None for one that decides once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    revision: str
    layers: int
    activated: bool
    actions: list[str]
    prompt_style: str
    prompt: str
    features: list[str]
    dtype: str
    four_bit: bool
    objectives: list[str]
    decide_again_s: float | None

    @staticmethod
    def of(parameters: Parameters, base: str, revision: str, layers: int, dtype: str) -> "Manifest":
        """That of an adapter which is trained or asked under these parameters now."""
        policy = parameters.policy
        return Manifest(
            base=base,
            revision=revision,
            layers=layers,
            activated=policy.lora.activated,
            actions=[str(action) for action in policy.actions],
            prompt_style=policy.prompt_style,
            prompt=version(policy.actions, policy.prompt_style),
            features=[feature.column for feature in FEATURES],
            dtype=dtype,
            four_bit=policy.four_bit,
            objectives=sorted(parameters.orders.objectives),
            decide_again_s=policy.decide_again_s if Action("keep") in policy.actions else None,
        )

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """That of the adapter in a folder.

        Raises
        ------
        ModelError
            If it is lost or damaged.
        """
        try:
            return Manifest.model_validate_json((folder / NAME).read_text())
        except (FileNotFoundError, ValidationError):
            raise ModelError(
                f"{folder / NAME} is lost or damaged: copy it back, or train again with: {training_command(folder)}"
            ) from None

    def write(self, folder: Path) -> None:
        """Leave it beside the adapter in `folder`."""
        (folder / NAME).write_text(self.model_dump_json(indent=2))

    def check(self, folder: Path) -> None:
        """Hold this one, of now, to that of the adapter in a folder.

        Raises
        ------
        ModelError
            If they differ, with both values and what to do; or as `read`.
        """
        then, now = Manifest.read(folder).model_dump(), self.model_dump()
        for name, mend in _MEND.items():
            if then[name] != now[name]:
                raise ModelError(
                    f"{folder / NAME}: the adapter was trained with {name} {then[name]!r}, and now it is "
                    f"{now[name]!r}: {mend}, or train again with: {training_command(folder)}"
                )


def training_command(folder: Path) -> str:
    """What trains the adapters of data/RUN/models/ASSET/ALGORITHM/seed_N, or of a study of the run, again."""
    run, asset = folder.parents[3], folder.parents[1].name
    if run.parent.name == STUDY:
        return f"hyperdapo study {option(run.parents[1].name)}"
    stage = "--force 06" if asset == GENERALIST else f"--asset {asset} --force 05"
    return f"hyperdapo run {option(run.name)} {stage}"
