"""What is language for? The same states, actions and budget; only what reads them, and in which words, differs.

A `Reader` is a language model that is trained by `dapo` on prompts of one style; the placebo is one whose prompts were
dealt to other states. Beside the readers stand what they could do untrained (`zero_shot`, and `few_shot`, with solved
states in the prompt), the rivals that read digits, and in a world with notices two that count its words (TF-IDF), one
that looks its sentence up, and one that is told what the notice means.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import hstack
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm import tqdm

from hyperdapo.files import read_table
from hyperdapo.market.columns import Floats
from hyperdapo.params import Parameters
from hyperdapo.paths import STUDY, Paths
from hyperdapo.policy import rivals
from hyperdapo.policy.decisions import Decider
from hyperdapo.policy.models import UNTAUGHT, load_base, load_tokenizer
from hyperdapo.policy.prompts import STYLES, check_lengths, instruction, letters
from hyperdapo.policy.scoring import Encodings, Scorer, score
from hyperdapo.policy.states import States, best_and_worst, of_split, read_states, reward_matrix
from hyperdapo.policy.training import train_runs
from hyperdapo.sections import PromptStyle

ALGORITHM = "dapo"
MOST, FEWER = 1000, (50, 200)  # training states
TESTED = 400  # test states of each asset, at most
SHOTS = 4  # solved states in a prompt
TOPICS = 16  # into which TF-IDF is drawn together for boosted trees

Chosen = NDArray[np.int64]


@dataclass(frozen=True)
class Reader:
    """A base and how many states in which style it is trained on."""

    base_model: str
    style: PromptStyle
    states: int = MOST
    placebo: bool = False

    @property
    def name(self) -> str:
        """Of its row, and of the folder of its adapters."""
        if self.placebo:
            return f"placebo {self.style}"
        return f"untaught {self.style}" if self.base_model == UNTAUGHT else self.style

    def under(self, parameters: Parameters) -> Parameters:
        """The parameters of a run with this base and style, in which nothing but `ALGORITHM` is trained."""
        policy = parameters.policy.model_copy(update={"base_model": self.base_model, "prompt_style": self.style})
        training = parameters.training.model_copy(update={"algorithms": [ALGORITHM]})
        return parameters.model_copy(update={"policy": policy, "training": training})


@dataclass(frozen=True)
class World:
    """The states of one asset: its features, and the outcomes of those in which there is something to read."""

    features: pd.DataFrame
    outcomes: pd.DataFrame

    @staticmethod
    def of(paths: Paths) -> "World":
        """As 03 and 04 left it; with notices in it, only the states in which one was heard.

        Raises
        ------
        MissingInputError
            If 03 or 04 has not run.
        """
        features, outcomes = read_table(paths.data, "features"), read_table(paths.data, "outcomes")
        if "notice" in features:
            outcomes = outcomes[features["notice"].to_numpy()[outcomes["order_id"]] != ""]
        return World(features, outcomes)

    @property
    def best_fixed(self) -> int:
        """The action that earned most over the training split."""
        return int(reward_matrix(of_split(self.outcomes, "train"))[1].mean(axis=0).argmax())

    def states(self, parameters: Parameters, split: str, most: int) -> States:
        """At most so many of a split, evenly spaced. Raises as `read_states`."""
        return read_states(self.features, self.outcomes, parameters, split).spread(most)


def readers(parameters: Parameters) -> list[Reader]:
    """The base in every style and on fewer states, without what it was taught, and as a placebo.

    The style of the profile comes first, and is that of all that is asked once. Where nobody hears a notice, `news`
    says what `anonymous` says, and is left out.
    """
    base, style = parameters.policy.base_model, parameters.policy.prompt_style
    silent = {"news"} if parameters.synthetic.notices.per_hour == 0 else set()
    others = [Reader(base, other) for other in STYLES if other not in {style, *silent}]
    fewer = [Reader(base, style, count) for count in FEWER]
    return [Reader(base, style), Reader(UNTAUGHT, style), Reader(base, style, placebo=True), *others, *fewer]


def decide(parameters: Parameters) -> Iterator[pd.DataFrame]:
    """Train and ask one policy after the other; what is trained already, as it would be now, is not trained again.

    Yields
    ------
    One row per state: `asset, decision_ns, wording` (of its notice, "" without), `trained_on, policy, states, seed,
    reward, best_fixed, oracle`, bps.
    """
    worlds = {asset: World.of(Paths(parameters.name, asset)) for asset in parameters.assets}
    for asset, world in worlds.items():
        yield from _rivals(parameters, asset, world)
    chosen = [(reader, asset) for reader in readers(parameters) for asset in worlds]
    for reader, asset in tqdm(chosen, "readers", mininterval=5):
        yield from _read(parameters, reader, asset, worlds)


def _read(parameters: Parameters, reader: Reader, asset: str, worlds: dict[str, World]) -> Iterator[pd.DataFrame]:
    """One reader, trained on one asset, on the test states of each."""
    under, world = reader.under(parameters), worlds[asset]
    paths = Paths(f"{parameters.name}/{STUDY}/{reader.name.replace(' ', '_')}_{reader.states}", asset)
    training, held_out = world.states(under, "train", reader.states), world.states(under, "validation", MOST)
    if reader.placebo:
        training = dealt(training, parameters.seed)
    seeds = parameters.training.seeds
    train_runs(under, paths, training, held_out, [(ALGORITHM, seed) for seed in seeds])
    for other, its_world in worlds.items():
        tested = its_world.states(under, "test", TESTED)
        decider, judge = Decider(under, tested), _Judge(its_world, tested, world.best_fixed, asset)
        for seed in seeds:
            yield judge.row(reader.name, reader.states, seed, decider.probabilities(paths.adapter(ALGORITHM, seed)))
        if other == asset and reader.states == MOST and not reader.placebo:
            yield judge.row(f"zero-shot {reader.name}", 0, 0, decider.probabilities())
            if reader == readers(parameters)[0]:
                yield judge.row(f"few-shot {reader.name}", SHOTS, 0, few_shot(under, training, tested))


def dealt(training: States, seed: int) -> States:
    """The same prompts and rewards, each prompt with the rewards of another state: nothing can be learned but luck."""
    dealt_to = np.random.default_rng(seed).permutation(len(training))
    return replace(training, prompts=[training.prompts[row] for row in dealt_to])


def few_shot(parameters: Parameters, training: States, tested: States) -> Floats:
    """(n, K) probabilities of the untrained base that is shown `SHOTS` training states, each with its best letter.

    Raises
    ------
    DataError
        If a prompt is then longer than `policy.max_length` tokens.
    """
    policy = parameters.policy
    opening = instruction(policy.actions, policy.prompt_style)
    shown = opening + "".join(solved(training, parameters))
    prompts = [shown + prompt.removeprefix(opening) for prompt in tested.prompts]
    check_lengths(prompts, tested.table, load_tokenizer(policy.base_model), policy.max_length)
    scorer = Scorer(*load_base(policy), shown, letters(policy.actions), policy.lora.layers)
    limit_gb = parameters.training.memory_gb
    return np.exp(score(scorer, Encodings(scorer, prompts, limit_gb, tested.distinct), parameters.inference.batch_size))


def solved(training: States, parameters: Parameters) -> list[str]:
    """`SHOTS` states in which actions differ, drawn, as they stand in a prompt, each with its best letter and a line's
    end; a tie is drawn."""
    policy, rng = parameters.policy, np.random.default_rng(parameters.seed)
    opening, names = instruction(policy.actions, policy.prompt_style), letters(policy.actions)
    telling = np.flatnonzero(training.rewards.max(axis=1) > training.rewards.min(axis=1))
    rows = np.sort(rng.choice(telling, min(SHOTS, len(telling)), replace=False))
    best = best_and_worst(training.rewards, training.distinct, rng)[:, 0]
    return [f"{training.prompts[row].removeprefix(opening)} {names[best[row]]}\n" for row in rows]


def _rivals(parameters: Parameters, asset: str, world: World) -> Iterator[pd.DataFrame]:
    """What needs no language model, on the asset's own test states."""
    tested, seed = world.states(parameters, "test", TESTED), parameters.seed
    for count in (*FEWER, MOST):
        training = world.states(parameters, "train", count)
        judge = _Judge(world, tested, world.best_fixed, asset)
        known, unseen = (rivals.inputs(world.features, states.table) for states in (training, tested))
        for rival in rivals.RIVALS:
            yield judge.chosen(rival, count, _fit(rival, known, training, unseen, tested, seed))
        if "notice" not in world.features:
            continue
        for rival, (seen, new) in counted_words(world.features, training, tested, known, unseen).items():
            yield judge.chosen(f"TF-IDF {rival}", count, _fit(rival, seen, training, new, tested, seed))
        for name, column in {"by heart": "notice", "told the kind": "notice_kind"}.items():
            yield judge.chosen(name, count, looked_up(world.features, column, training, tested))


def _fit(rival: str, known: Floats, training: States, unseen: Floats, tested: States, seed: int) -> Chosen:
    return rivals.decide(rivals.fit(rival, known, training.rewards, seed), unseen, tested.distinct)


def counted_words(
    features: pd.DataFrame, training: States, tested: States, known: Floats, unseen: Floats
) -> dict[str, tuple[Floats, Floats]]:
    """Inputs of training and test states for rivals that count words: the digits beside TF-IDF of words and pairs.

    The counts stand there as they are and times the order's side, since good news is bad for a buyer who waits. For
    boosting they are drawn together into `TOPICS` (latent semantic analysis).
    """
    texts = [features["notice"].iloc[states.table["order_id"]] for states in (training, tested)]
    sides = [states.table["side"].to_numpy(float)[:, None] for states in (training, tested)]
    counts = TfidfVectorizer(ngram_range=(1, 2)).fit(texts[0])
    signed = [
        hstack([words, words.multiply(side)]).tocsr()
        for words, side in zip(map(counts.transform, texts), sides, strict=True)
    ]
    topics = TruncatedSVD(TOPICS, random_state=0).fit(signed[0])
    both = known, unseen
    linear = [np.hstack([digits, words.toarray()]) for digits, words in zip(both, signed, strict=True)]
    boosting = [np.hstack([digits, topics.transform(words)]) for digits, words in zip(both, signed, strict=True)]
    return {"linear": (linear[0], linear[1]), "boosting": (boosting[0], boosting[1])}


def looked_up(features: pd.DataFrame, column: str, training: States, tested: States) -> Chosen:
    """(n,) the best fixed action for each value of a column and side; for a value that is new the best of all.

    For `notice` it is a table of sentences learned by heart, for `notice_kind` what perfect understanding would be
    worth.
    """
    kinds = [features[column].iloc[states.table["order_id"]].to_numpy() for states in (training, tested)]
    known, unseen = (
        pd.MultiIndex.from_arrays([kind, states.table["side"]])
        for kind, states in zip(kinds, (training, tested), strict=True)
    )
    best = pd.DataFrame(training.rewards, index=known).groupby(level=[0, 1]).mean().idxmax(axis=1)
    fallback = int(training.rewards.mean(axis=0).argmax())
    chosen: Chosen = best.reindex(unseen).fillna(fallback).to_numpy(np.int64)
    return chosen


@dataclass(frozen=True)
class _Judge:
    """What choices earn on test states of a world, beside the fixed action that was best where they were learned."""

    world: World
    tested: States
    best_fixed: int
    trained_on: str

    def row(self, policy: str, states: int, seed: int, probabilities: Floats) -> pd.DataFrame:
        return self.chosen(policy, states, probabilities.argmax(axis=1), seed)

    def chosen(self, policy: str, states: int, action: Chosen, seed: int = 0) -> pd.DataFrame:
        table, rewards, features = self.tested.table, self.tested.rewards, self.world.features
        wording = features["notice_wording"].iloc[table["order_id"]].to_numpy() if "notice" in features else ""
        return table[["asset", "decision_ns"]].assign(
            wording=wording,
            trained_on=self.trained_on,
            policy=policy,
            states=states,
            seed=seed,
            reward=rewards[np.arange(len(rewards)), action],
            best_fixed=rewards[:, self.best_fixed],
            oracle=rewards.max(axis=1),
        )
