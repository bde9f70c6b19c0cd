"""How far a share or a difference of shares can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Paired:
    """Two systems on the same questions: how many each combination of right and wrong had.

    fixed: wrong in the first, right in the second; broken: the other way round.
    """

    both_right: int
    fixed: int
    broken: int
    both_wrong: int

    @property
    def difference(self) -> float:
        """Share of the second minus share of the first."""
        return (self.fixed - self.broken) / self._total

    def interval(self) -> tuple[float, float]:
        """95% interval of the difference.

        Source: Agresti and Min, "Simple improved confidence intervals for comparing matched proportions" (2005): Wald's
        interval after adding half an observation to each of the four cells.
        """
        fixed, broken, total = self.fixed + 0.5, self.broken + 0.5, self._total + 2
        middle = (fixed - broken) / total
        half = _Z * sqrt(fixed + broken - (fixed - broken) ** 2 / total) / total
        return max(-1.0, middle - half), min(1.0, middle + half)

    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how likely so uneven a split of fixed and broken is by chance alone.

        Source: McNemar (1947), with the binomial distribution instead of chi-squared.
        """
        changed = self.fixed + self.broken
        tail = ways = 1  # in whole numbers up to the end: 0.5 ** changed is zero from about a thousand changes on
        for count in range(min(self.fixed, self.broken)):
            ways = ways * (changed - count) // (count + 1)
            tail += ways
        return min(1.0, 2 * tail / (1 << changed))

    @property
    def _total(self) -> int:
        return self.both_right + self.fixed + self.broken + self.both_wrong


def pair(first: list[bool], second: list[bool]) -> Paired:
    """Count the combinations; both lists are about the same questions in the same order."""
    combinations = list(zip(first, second, strict=True))
    return Paired(
        combinations.count((True, True)),
        combinations.count((False, True)),
        combinations.count((True, False)),
        combinations.count((False, False)),
    )


def wilson(count: int, total: int) -> tuple[float, float]:
    """95% interval of the share count / total, (0, 1) for no observation.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    if not total:
        return 0.0, 1.0
    share, z2 = count / total, _Z**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z * sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    # At the ends the formula's rounding leaves something like 1e-18.
    return (0.0 if count == 0 else middle - half), (1.0 if count == total else middle + half)
