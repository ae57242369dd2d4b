"""Which runs a comparison needs."""

from __future__ import annotations

from collections.abc import Sequence

from .runs import FINAL, FIRST_TUNING_SEED, TUNING, Run, Settings


class Plan:
    """Which runs a comparison needs.

    Args:
        methods: names, the baseline first.
        grids: settings that are tried, by method.
        has_test: True if there is a test set.
        seeds: the largest number of seeds.
        repeats: number of tuning runs of each setting.
    """

    def __init__(
        self, methods: Sequence[str], grids: dict[str, list[Settings]], has_test: bool, seeds: int, repeats: int
    ) -> None:
        self.methods, self.grids, self.has_test, self.seeds, self.repeats = methods, grids, has_test, seeds, repeats

    def split(self, seed: int) -> int:
        """Return the number of the split of a seed."""
        return 0 if self.has_test else seed

    def tuning(self, split: int) -> list[Run]:
        """Return the tuning runs of a split."""
        runs = []
        for repeat in range(self.repeats):
            seed = FIRST_TUNING_SEED + 1000 * split + repeat
            for method in self.methods:
                tried = self.grids[method]
                runs += [Run(TUNING, method, settings, seed, split) for settings in tried if len(tried) > 1]
        return runs

    def final(self, seed: int, chosen: dict[tuple[str, int], Settings]) -> list[Run]:
        """Return the final runs of a seed, one for each method."""
        split = self.split(seed)
        return [Run(FINAL, method, chosen[method, split], seed, split) for method in self.methods]

    def size(self, seeds: int) -> int:
        """Return the number of all runs up to some number of seeds."""
        splits = 1 if self.has_test else seeds
        return splits * len(self.tuning(0)) + seeds * len(self.methods)
