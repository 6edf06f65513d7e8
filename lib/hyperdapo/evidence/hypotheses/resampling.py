"""Means of dependent series: how long their memory is, their standard errors, and intervals of all of them at once.

A series is cut into short bins. The standard error of its mean is fixed-b: the mean square of the projections on the B
slowest cosines, with which t has B degrees of freedom (Lazarus, Lewis, Stock and Watson 2018, their EWC). How far k
comparisons move together say resamples of bins (stationary bootstrap, Politis and Romano 1994), whole training seeds
drawn with them: their estimates, each in units of its own spread and over an error drawn from its degrees of freedom,
are k values of t whose joint law holds the family at its level. The errors are not those of the resamples: a series
that one event decides, as of two policies that seldom differ, has none in many of them, and would decide for all.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from arch.bootstrap import StationaryBootstrap, optimal_block_length
from numpy.typing import NDArray
from scipy import stats
from scipy.fft import dct

from hyperdapo.evidence.metrics import Floats

FEWEST_BINS = 16
"""Below, the memory of a series cannot be measured."""


@dataclass(frozen=True)
class Contrasts:
    """k differences of mean costs: what each of m runs (an asset, a strategy, a training seed) weighs in each.

    sums : (n, m) bps, the costs of a run summed in each of n bins
    weights : (m, k) of the runs in the differences; those of the seeds of a strategy add up to 1 or -1
    counts : (n, k) orders of each difference in each bin
    group : (m,) runs of one group are seeds of the same training
    """

    sums: Floats
    weights: Floats
    counts: Floats
    group: NDArray[np.int64]

    @property
    def size(self) -> NDArray[np.int64]:
        """(groups,) how many seeds each has."""
        return np.bincount(self.group)

    @cached_property
    def of_data(self) -> tuple[Floats, Floats, Floats]:
        """The k estimates, what each bin adds to them (n, k), and their variance between seeds (k,)."""
        total = self.counts.sum(axis=0)
        difference = self.sums @ self.weights
        value = difference.sum(axis=0) / total
        return value, (difference - value * self.counts) / self.counts.mean(axis=0), self._between() / total**2

    def estimates(self, rows: NDArray[np.int64], drawn: Floats) -> Floats:
        """(k,) of a resample: its bins, and how often each run is drawn (m,)."""
        times = np.bincount(rows, minlength=len(self.sums)).astype(float)
        estimates: Floats = (drawn * (times @ self.sums)) @ self.weights / (times @ self.counts)
        return estimates

    def _between(self) -> Floats:
        """(k,) variance of the sum of each difference that comes from its training seeds."""
        total, seeds = self.sums.sum(axis=0), self.size
        if seeds.max(initial=1) == 1:
            return np.zeros(self.weights.shape[1])
        mean = np.bincount(self.group, total) / seeds
        spread = np.bincount(self.group, (total - mean[self.group]) ** 2) / np.maximum(seeds - 1, 1)
        member = np.zeros((len(seeds), self.weights.shape[1]))
        np.maximum.at(member, self.group, (self.weights != 0).astype(float))
        between: Floats = (spread / seeds) @ member
        return between


@dataclass(frozen=True)
class Estimates:
    """k differences, each (k,): estimate, standard error, and degrees of freedom of its t.

    `least` (R,) is the least p-value of all k in each resample, were there no difference.
    """

    value: Floats
    error: Floats
    degrees: Floats
    least: Floats

    @property
    def p(self) -> Floats:
        """(k,) two-sided p-values of each comparison alone."""
        p_values: Floats = 2 * stats.t.sf(np.abs(self.value / self.error), self.degrees)
        return p_values

    def critical(self, level: float) -> Floats:
        """(k,) what |t| must exceed: at most `level` of families without a difference have one beyond."""
        place = int(level * (len(self.least) + 1)) - 1
        alone = np.sort(self.least)[place] if place >= 0 else 0.0
        beyond: Floats = stats.t.isf(alone / 2, self.degrees)
        return beyond

    def p_simultaneous(self) -> Floats:
        """(k,) p-values of the family; below a level exactly where the interval of that level leaves zero out."""
        beyond = (self.least[:, None] <= self.p).sum(axis=0)
        p_values: Floats = (1 + beyond) / (1 + len(self.least))
        return p_values


def estimate(contrasts: Contrasts, length: int, blocks: int, resamples: int, seed: int) -> Estimates:
    """Differences with standard errors, and their joint law from resamples of blocks of `length` bins in the mean."""
    cosines = degrees(len(contrasts.sums), blocks)
    value, scores, between = contrasts.of_data
    of_time = long_run_error(scores, cosines)
    drawn = [contrasts.estimates(*resample) for resample in _resamples(contrasts, length, resamples, seed)]
    freedom = _satterthwaite(contrasts, of_time, between, cosines)
    apart = (np.array(drawn) - value) / np.std(drawn, axis=0)
    errors = np.sqrt(np.random.default_rng([seed, 2]).chisquare(freedom, apart.shape) / freedom)
    least = 2 * stats.t.sf(np.abs(apart) / errors, freedom).min(axis=1)
    return Estimates(value, np.sqrt(of_time**2 + between), freedom, least)


def long_run_error(scores: Floats, cosines: int) -> Floats:
    """Standard error (k,) of the mean of dependent (n, k) scores of mean zero, from their slowest cosines."""
    projected = dct(scores, type=2, norm="ortho", axis=0)[1 : cosines + 1]
    error: Floats = np.sqrt((projected**2).mean(axis=0) / len(scores))
    return error


def degrees(bins: int, blocks: int) -> int:
    """How many cosines: 0.4 n^(2/3), as Lazarus et al. advise, and fewer than there are blocks."""
    cosines: int = round(0.4 * float(bins) ** (2 / 3))
    return max(min(cosines, blocks - 1), 1)


def block_bins(scores: Floats, floor: int) -> int:
    """Bins of a block for (n, k) series: what they ask for (Politis and White 2004, median), `floor` at least."""
    if len(scores) < FEWEST_BINS or not scores.shape[1]:
        return floor
    wanted = float(optimal_block_length(scores)["stationary"].median())
    return max(floor, math.ceil(wanted)) if math.isfinite(wanted) else floor


def block_means(scores: Floats, length: int) -> Floats:
    """(blocks, k) means of blocks of `length` bins; what is left at the end is none."""
    whole = len(scores) // length
    means: Floats = scores[: whole * length].reshape(whole, length, -1).mean(axis=1)
    return means


def autocorrelation(means: Floats) -> Floats:
    """(k,) correlation of each series with itself one step before."""
    apart = means - means.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        lagged: Floats = (apart[1:] * apart[:-1]).sum(axis=0) / (apart**2).sum(axis=0)
    return lagged


def _resamples(
    contrasts: Contrasts, length: int, resamples: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Bins, in runs of `length` in the mean, and how often each training seed is drawn."""
    rng, seeds = np.random.default_rng([seed, 1]), contrasts.size
    drawn = np.ones(len(contrasts.group))
    bootstrap = StationaryBootstrap(length, np.arange(len(contrasts.sums)), seed=np.random.default_rng([seed, 0]))
    for (rows,), _ in bootstrap.bootstrap(resamples):
        for group in np.flatnonzero(seeds > 1):
            drawn[contrasts.group == group] = rng.multinomial(seeds[group], np.full(seeds[group], 1 / seeds[group]))
        yield rows, drawn


def _satterthwaite(contrasts: Contrasts, of_time: Floats, between: Floats, cosines: int) -> Floats:
    """(k,) degrees of freedom of the two parts of each error together; of seeds, those of the smallest group."""
    several = contrasts.size[contrasts.size > 1]
    if not len(several):
        return np.full(len(of_time), float(cosines))
    with np.errstate(divide="ignore", invalid="ignore"):
        joined = (of_time**2 + between) ** 2 / (of_time**4 / cosines + between**2 / (several.min() - 1))
    return np.where(np.isnan(joined), cosines, joined)
