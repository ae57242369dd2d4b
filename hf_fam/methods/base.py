"""What a training method is: a name, at most one strength, and the change that it makes to a Trainer."""

from __future__ import annotations

import dataclasses
import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from transformers import Trainer, TrainerCallback

from ..inputs.numbers import require_number
from ..inputs.text import LONGEST_VALUE, quote

METHODS: dict[str, type[Method]] = {}
_Class = TypeVar("_Class", bound="type[Method]")


@dataclass(frozen=True)
class Method(ABC):
    """A training method.

    A subclass is one small file, and `register` makes it known by its name.

    Args:
        strength: the one number that the method has. Defaults to the method's own.

    Attributes:
        name: the value of ``--method``.
        field: the flag of `hf-fam train` that sets the strength; None if there is no strength.
        description: one line for the table of methods, with the source.
        default: strength if none is given.
        step: factor between neighboring strengths of a tuning grid.
        limits: the strength is between these two numbers.
        can_be_zero: True if a strength of 0 is plain training.
        has_learning_rate: False if the method does not train by gradient steps.

    Raises:
        ValueError: the strength is out of range, or the method has none.

    Examples:
        >>> from hf_fam.methods import method_called
        >>> method_called("sam")(0.1).strengths(2)
        [0.1, 0.2]
    """

    strength: float | None = None

    name: ClassVar[str]
    description: ClassVar[str]
    field: ClassVar[str | None] = None
    default: ClassVar[float | None] = None
    step: ClassVar[float] = 10.0
    limits: ClassVar[tuple[float, float]] = (0.0, math.inf)
    can_be_zero: ClassVar[bool] = False
    has_learning_rate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.strength is None:
            return
        if self.field is None:
            raise ValueError(f"method={self.name!r} has no strength: leave out strength={quote(self.strength)}.")
        strength = require_number(
            self.field, self.strength, *self.limits, open_low=not self.can_be_zero, open_high=True
        )
        object.__setattr__(self, "strength", strength)  # texts become numbers

    @property
    def value(self) -> float:
        """Return the strength that is used.

        Raises:
            ValueError: the method has no strength.
        """
        value = self.default if self.strength is None else self.strength
        if value is None:
            raise ValueError(f"method={self.name!r} has no strength.")
        return value

    def resolve(self, trainer: Any) -> Method:
        """Return the method with the strength that it uses in this Trainer."""
        return self if self.field is None else dataclasses.replace(self, strength=self.value)

    def strengths(self, count: int) -> list[float]:
        """Return a grid of strengths around the method's own, in ascending order."""
        first = -((count - 1) // 2)
        return [round_to(self.value * self.step**k) for k in range(first, first + count)]

    @abstractmethod
    def apply(self, trainer: Any) -> None:
        """Change a Trainer so that its next training is by this method.

        Args:
            trainer: a ``Trainer`` that has not trained yet.

        Raises:
            ValueError: the Trainer cannot train by this method; the message says why.
        """


def register(method: _Class) -> _Class:
    """Make a method known by its name, and return it.

    Args:
        method: a subclass of `Method`; use this function as its decorator.

    Raises:
        TypeError: it is no such class.

    Examples:
        >>> from hf_fam.methods import METHODS, Method, register
        >>> @register
        ... class ConstantSchedule(Method):
        ...     name = "constant_schedule"
        ...     description = "plain training with a constant learning rate"
        ...
        ...     def apply(self, trainer):
        ...         trainer.args.lr_scheduler_type = "constant"
        >>> METHODS.pop("constant_schedule").name
        'constant_schedule'
    """
    if not isinstance(method, type) or not issubclass(method, Method):
        raise TypeError(f"method={quote(method)}: give a subclass of Method.")
    METHODS[method.name] = method
    return method


@register
class Plain(Method):
    """The Trainer as it is: the baseline of a comparison.

    Examples:
        >>> Plain().strength is None
        True
    """

    name = "plain"
    description = "plain training: the Trainer as it is"

    def apply(self, trainer: Any) -> None:
        """Leave the Trainer as it is."""


def method_called(name: str) -> type[Method]:
    """Return the method of a name.

    Raises:
        ValueError: there is no such method; the message has near names.

    Examples:
        >>> from hf_fam.methods import method_called
        >>> method_called("mixpu")
        Traceback (most recent call last):
        ValueError: method='mixpu': did you mean mixup? Choose one of ...
    """
    if not isinstance(name, str) or name not in METHODS:
        near = difflib.get_close_matches(name[:LONGEST_VALUE], METHODS, n=2) if isinstance(name, str) else []
        hint = f"did you mean {' or '.join(near)}? Choose" if near else "choose"
        raise ValueError(f"method={quote(name, 20)}: {hint} one of {', '.join(sorted(METHODS))}.")
    return METHODS[name]


def round_to(value: float, digits: int = 3) -> float:
    """Return a number rounded to a number of significant digits.

    Examples:
        >>> round_to(0.0123456)
        0.0123
    """
    return float(f"{value:.{digits}g}")


class MustAct(TrainerCallback):
    """Ends a training in which a method has no effect, after the first step.

    Args:
        method: the method.
        has_acted: returns True once the method had an effect.
    """

    def __init__(self, method: Method, has_acted: Callable[[], bool]) -> None:
        self._name, self._has_acted = method.name, has_acted

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the first step.

        Raises:
            ValueError: the Trainer goes past the method.
        """
        if not self._has_acted():
            raise ValueError(
                f"method={self._name!r} has no effect: this Trainer's compute_loss goes past compute_loss_func or past "
                "the head; call super().compute_loss there."
            )


def put_in_front(trainer: Any, mixin: type[Trainer]) -> None:
    """Give a Trainer a class in front of its own, whose methods then run first."""
    kind = type(trainer)
    trainer.__class__ = type(f"{mixin.__name__}Of{kind.__name__}", (mixin, kind), {})


def refuse_without_classes(method: Method, trainer: Any) -> None:
    """Refuse a model without classes.

    Raises:
        ValueError: the model predicts numbers, or several labels for one item.
    """
    config = getattr(trainer.model, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem in ("regression", "multi_label_classification") or getattr(config, "num_labels", 2) == 1:
        raise ValueError(f"method={method.name!r} needs a model that chooses one of several classes.")
