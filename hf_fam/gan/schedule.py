"""The number of critic steps before each generator step."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from ..inputs.numbers import require_whole


@dataclass(frozen=True)
class CriticSchedule:
    """The number of critic steps before each generator step.

    Source: the code of the first Wasserstein GAN (Arjovsky et al. 2017).

    Args:
        steps: critic steps before an ordinary generator step.
        warmup: critic steps before a generator step of the warm-up.
        warmup_steps: number of generator steps at the beginning that belong to the warm-up.
        warmup_every: interval, in generator steps, of further warm-up steps; 0: none.

    Raises:
        ValueError: ``steps`` or ``warmup`` is not a whole number of at least 1, or another not of at least 0.

    Examples:
        >>> schedule = CriticSchedule(steps=5, warmup=100, warmup_steps=25, warmup_every=500)
        >>> schedule.critic_steps(25), schedule.critic_steps(26), schedule.critic_steps(501)
        (2500, 2505, 4975)
        >>> schedule.generator_steps(2504), schedule.generator_steps(2505)
        (25, 26)
    """

    steps: int = 5
    warmup: int = 5
    warmup_steps: int = 0
    warmup_every: int = 0

    def __post_init__(self) -> None:
        """Validate."""
        for name, least in (("steps", 1), ("warmup", 1), ("warmup_steps", 0), ("warmup_every", 0)):
            value = getattr(self, name)
            object.__setattr__(self, name, require_whole(name, value, least))

    def critic_steps(self, generator_steps: int) -> int:
        """Return the number of critic steps that precede some generator steps."""
        initial_warmup = min(generator_steps, self.warmup_steps)
        warmup_steps = initial_warmup
        if self.warmup_every:
            warmup_steps += _multiples_below(generator_steps, self.warmup_every) - _multiples_below(
                initial_warmup, self.warmup_every
            )
        return self.steps * (generator_steps - warmup_steps) + self.warmup * warmup_steps

    def generator_steps(self, critic_steps: int) -> int:
        """Return the number of generator steps that follow some critic steps."""
        return bisect.bisect_right(range(critic_steps + 2), critic_steps, key=self.critic_steps) - 1

    def generator_follows(self, critic_step: int) -> bool:
        """Return True if a generator step comes right after a critic step.

        Critic steps count from 0.
        """
        return self.critic_steps(self.generator_steps(critic_step + 1)) == critic_step + 1


def _multiples_below(number: int, divisor: int) -> int:
    """Return how many of 0, divisor, 2 divisor, ... are below a number."""
    return -(-number // divisor)
