"""Relative flatness of one layer on the current batch, for any training loop."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..calculus.derivatives import SecondDerivativeError, wide
from ..inputs.text import quote
from ..layer.finding import AUTO, unwrap
from ..layer.forward_watch import ForwardWatch
from ..layer.sharding import is_sharded
from .batch import Batch, Seeds
from .checks import check_captures, explain_missing_derivative
from .estimators import FULL, NoClosedForm, default_lambda
from .feature_mean import FeatureMean
from .loss_checks import LossChecks
from .resolved_arguments import ResolvedArguments


class RelativeFlatness:
    """Relative flatness kappa of one layer, ready to be added to the loss.

    ``kappa(W) = sum_{s,s'} <w_s, w_s'> Tr H_{s,s'}`` with ``H_{s,s'} = d2L / dw_s dw_s'`` (Petzka et al. 2021;
    Adilova et al. 2023, definition 3). A *small* kappa is *flat*.

    Run the forward pass inside ``with flatness.capture():``. Then call the object with the loss. It returns kappa of
    this batch, in the autograd graph. No second forward pass is needed.

    Args:
        model: the model to train.
        layer: the layer to flatten. ``"auto"`` and ``"head"`` are the classification head, the layer that computes the
            logits. ``"representation"`` is the hidden layer whose outputs the head reads. A dotted module name or a
            module selects any other layer.
        estimator: how kappa is computed. ``"auto"`` chooses the closed form for a head, row probes for a head of more
            than 4096 classes, and Gauss-Newton probes for a hidden layer. If no head is found, it chooses Hessian
            probes.

            - ``"closed_form"``: exact, for heads. Knows softmax cross-entropy, sigmoid cross-entropy, squared error
              and other common losses.
            - ``"row_probes"``: the closed form from a random sketch of the weight, for large vocabularies.
            - ``"hessian"``: random probes of the exact kappa, for any layer and loss.
            - ``"gauss_newton"``: random probes that are never negative for a convex loss.
            - ``"perturbation"``: the loss under random feature perturbations. Needs first derivatives only.
            - ``"dense"``: the full Hessian, a reference for small layers.

            In a model that FSDP or DeepSpeed ZeRO stage 3 shards, the closed form acts in the backward pass.
            ``"auto"`` is perturbation for a hidden layer. The other estimators are refused.
        probes: number of random probes to average. Defaults to 16 for row probes and to 1 for Hessian and Gauss-Newton
            probes. The other estimators use none.
        generator: random generator for the seeds of the probes. By default the seeds are numbered, so the random state
            of the training does not change.
        gradient: ``"full"`` or ``"weights_only"``. With ``"weights_only"`` the gradient reaches W alone, as in the
            papers' released code.
        center: perturb the features around their running mean (`FeatureMean`) instead of around 0. kappa then ignores
            what the features of all items share. The layer's bias absorbs the shift, so the model computes the same
            function. The first batch only provides the mean, so its kappa has no gradient. Available for linear layers,
            except with ``"dense"`` and ``"row_probes"``. None centers when only a head with a bias
            is trained, as the trainers do. The papers' definition is False.
        smoothing: eps, at least 0 and below 1. kappa then weighs the classes by smoothed probabilities,
            ``(1 - eps) p + eps / C``. So a confident model does not count as flat (docs/smoothing.md). Available with
            ``"closed_form"``, ``"row_probes"`` and ``"gauss_newton"``, for softmax and sigmoid cross-entropy; a squared
            error needs none. None is 0.1 when only a head of at most 4,096 classes is trained, as in the trainers, and
            0 otherwise. The papers' definition is 0.

    Attributes:
        layer: the `FeatureLayer`.
        mean: running mean of the features, or None without ``center``.
        at_head: whether the layer computes the logits, as far as the model shows.
        method: the `Estimator` in use, with its traits. It is replaced if the loss has no closed form.
        watch: the hooks that capture the forward pass, and the captures.
        default_strength: default lambda of the estimator that was chosen first.
        ends_steps: whether every `capture` begins a new step of the running mean. If you set it to False, call
            ``mean.end_step`` after the last micro-batch of a step.

    Raises:
        ValueError: the layer, estimator or gradient is unknown; the estimator does not support the layer; ``smoothing``
            is out of range; ``smoothing`` or ``center`` is not available here; ``probes`` is below 1; the model is
            wrapped in ``torch.nn.DataParallel``.
        TypeError: the layer is of a kind that is not supported.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> flatness = RelativeFlatness(model)  # layer="auto", estimator="auto"
        >>> with flatness.capture():
        ...     logits = model(torch.randn(5, 4))
        >>> task_loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1]))
        >>> loss = task_loss + 0.003 * flatness(task_loss)  # one backward pass as usual
        >>> loss.backward()
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module = AUTO,
        estimator: str = AUTO,
        probes: int | None = None,
        generator: torch.Generator | None = None,
        *,
        gradient: str = FULL,
        center: bool | None = False,
        smoothing: float | None = 0.0,
    ) -> None:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator={quote(generator)}: give a torch.Generator or None.")
        self._model = model
        self._resolved = ResolvedArguments(model, layer, estimator, probes, gradient, center, smoothing)
        self.layer, self.at_head = self._resolved.layer, self._resolved.at_head
        self._use_resolved_estimator()
        self.mean = FeatureMean() if self._resolved.centers else None
        self.ends_steps = True
        self._model_class = type(unwrap(model))
        self._checks = LossChecks(model, self.layer, at_head=self.at_head)
        self._generator = generator
        self._seeds = Seeds()
        self._call_number = 0
        self._reference: Tensor | None = None

    def __repr__(self) -> str:
        """Return the layer with its d x m weight, and how its kappa is computed."""
        more = f", smoothing={self.method.smoothing:g}" if self.method.smoothing else ""
        more += ", center=True" if self.mean is not None else ""
        size = f"{self.layer.out_features} x {self.layer.in_features}"
        return f"RelativeFlatness(layer={self.layer.name!r}, {size}, estimator={self.estimator!r}{more})"

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, pickled or not; the last forward pass stays with the original."""
        return {**vars(self), "_reference": None}

    def _use_resolved_estimator(self) -> None:
        method = self.method = self._resolved.method
        self.default_strength = default_lambda(method.name, self.layer.out_features, at_head=self.at_head)
        # Only third derivatives of a tail need exact normalizations.
        self.watch = ForwardWatch(
            self._model,
            self.layer,
            method.choice.head if method.needs_logits else None,
            exact_norms=method.tail_derivatives == 3 and not self.at_head,
            unfuse_head=self.at_head or method.tail_derivatives > 0,
        )

    @property
    def estimator(self) -> str:
        """Return the name of the estimator in use.

        It changes to ``"hessian"`` if the loss has no closed form.
        """
        return self.method.name

    @property
    def probes(self) -> int:
        """Return the number of random probes that are averaged."""
        return self.method.probes

    @property
    def is_sharded(self) -> bool:
        """Return True if the estimator is one for a model that FSDP or DeepSpeed shards."""
        return self._resolved.is_sharded

    @property
    def centers_by_default(self) -> bool:
        """Return what ``center=None`` means for the model as it is now.

        True if only a head with a bias is trained. The bias absorbs the mean of the features, so the function does not
        change.
        """
        return self._resolved.centers_by_default

    @property
    def is_outdated(self) -> bool:
        """Return True if a new object for the same model would differ.

        The model may have a new head or an adapter, or other parameters may be trainable now.
        """
        return self._resolved.is_outdated

    def adapt_to_sharding(self) -> None:
        """Use an estimator that works in a model that FSDP or DeepSpeed shards.

        The head's term then acts in the backward pass. At other layers, ``"auto"`` becomes ``"perturbation"``. A model
        that is sharded already is noticed by itself.

        Raises:
            ValueError: the estimator does not work there, or the model is in the older FullyShardedDataParallel.
        """
        if self.is_sharded:
            return
        self._resolved.adapt_to_sharding(self.method)
        self.watch.detach()
        self.method.forget()
        self._use_resolved_estimator()

    def seed(self, *numbers: int, first_item: int = 0, items: int | None = None) -> None:
        """Set the seeds of the next probes, so that a resumed run repeats them.

        With ``first_item``, every item gets the same random signs however the batch of a step is split into
        micro-batches and processes.

        Args:
            numbers: seeds, the same on every process and micro-batch of a step: for example a seed and the step.
            first_item: position of the next batch's first item in the whole batch of the step.
            items: number of items in the next batch, if the first dimension contains several rows of each item
                (flattened tokens, choices). None if the first dimension counts the items.
        """
        self._seeds, self._call_number = Seeds(numbers, first_item, items), 0

    @contextlib.contextmanager
    def capture(self, strength: float | None = None) -> Iterator[None]:
        """Capture the forward pass inside the ``with`` block.

        Args:
            strength: lambda. Required by ``"perturbation"``, which acts in the forward pass. A head of more than 4096
                classes under cross-entropy uses it to save memory. The term then acts in the backward pass, and adding
                the result to the loss has no further effect.

        Raises:
            ValueError: ``"perturbation"`` got no strength or a negative one, or the estimator does not support a model
                that FSDP or DeepSpeed shards.
        """
        self._reference = None  # frees the graph of a pass without a backward pass
        if self.mean is not None and self.ends_steps:
            self.mean.end_step()
        self._check_sharding()
        if self.mean is not None and self.mean.value is None and strength is not None:
            strength = min(strength, 0.0)  # the first batch only provides the mean
        self.method.begin(strength, self._next_seeds, None if self.mean is None else self.mean.value)
        with self.watch.capture():
            yield

    def __call__(self, loss: Tensor) -> Tensor:
        """Return kappa of the captured batch, in the units of ``loss``.

        The result is a scalar in the autograd graph. With ``"perturbation"``, and for a large head that was captured
        with a strength, the term acts by itself: the result is zero until the backward pass fills in kappa.

        kappa of a batch that does not use the layer is 0 (layerdrop, an expert without tokens). A layer that is not
        called at first is refused, unless it is an expert or the model's configuration has layerdrop.

        Args:
            loss: the scalar loss of the captured forward pass.

        Raises:
            ValueError: the loss is not a scalar, the layer was not called, or no parameter at or below it is trainable.
            SecondDerivativeError: an operation above the layer has no second derivative, for example an attention
                kernel.
        """
        if self._checks.is_skipped(loss, self.watch.captures):
            self.watch.take()
            if self.mean is not None:
                self.mean.add_no_rows(self.layer.in_features, loss)
            return loss.new_zeros((), dtype=wide(loss.dtype))
        batch = self._batch(loss)
        is_check_due = self._checks.is_due()
        kappa = self._estimate(batch, is_check_due)
        if self.mean is not None:
            kappa = kappa if self.mean.value is not None else kappa.detach()
            self.mean.add(batch.features)
        if is_check_due:
            self._checks.warn_of_zero(kappa, batch)
        return kappa

    def gradient_squares(self, loss: Tensor, kappa: Tensor) -> Tensor | None:
        """Return ``||d kappa||^2`` and ``||d loss||^2`` by the features of the last batch.

        The squares of micro-batches and processes add up to those of the whole batch. The derivatives are by phi, or by
        z if nothing below the layer is trainable. If the term of a large head acts in the backward pass, they are by z,
        and the result is zero until the backward pass.

        Args:
            loss: the loss of the batch.
            kappa: the kappa that this object returned for it.

        Returns:
            A tensor of shape ``(2,)``, in float32 or wider. None for ``"perturbation"``, whose term has no gradient of
            its own.
        """
        reference, self._reference = self._reference, None
        return None if reference is None else self.method.gradient_squares(loss, kappa, reference)

    def read_checks(self) -> None:
        """Check the next loss again if its form changed since the last call.

        The checks of every step stay on the device. Call this where you wait for the device anyway, for example when
        you log. Otherwise it happens at every hundredth batch.
        """
        self.method.read_checks()

    def detach(self) -> None:
        """Remove the hooks from the model.

        The next `capture` registers them again.
        """
        self.watch.detach()
        self.method.forget()
        self._reference = None

    def _estimate(self, batch: Batch, is_check_due: bool) -> Tensor:
        try:
            method = self.method.for_batch(batch)
            if is_check_due and method.tail_derivatives > 0:
                self._checks.check(batch, method)
            with _without_autocast(batch.loss.device.type):
                kappa = method(batch)
            return kappa.to(batch.loss.device)  # model parallelism: the layer may be on another device
        except NoClosedForm as error:
            self.method = self.method.replacement(error, batch)
            return self._estimate(batch, is_check_due)
        except SecondDerivativeError as error:
            raise SecondDerivativeError(explain_missing_derivative(error, self.layer, self.estimator)) from error

    def _check_sharding(self) -> None:
        model = unwrap(self._model)
        if type(model) is not self._model_class:  # fully_shard changes the model's class
            self._model_class = type(model)
            if is_sharded(model):
                self.adapt_to_sharding()

    def _batch(self, loss: Tensor) -> Batch:
        captures, heads = self.watch.take()
        check_captures(loss, self.layer, self.method.choice.head, captures, heads)
        assert captures
        first_call = captures[0]
        self._reference = first_call.features if first_call.features.requires_grad else first_call.pre_activations
        return Batch(
            loss=loss,
            features=[c.features for c in captures],
            pre_activations=[c.pre_activations for c in captures],
            linear_map=self.layer.linear_map,
            logits=[c.pre_activations for c in heads],
            seeds=self._next_seeds(),
            weights_only=self.method.weights_only,
            center=None if self.mean is None else self.mean.center_for([c.features for c in captures]),
        )

    def _next_seeds(self) -> Seeds:
        if self._generator is not None:
            number = int(torch.randint(2**62, (), generator=self._generator, device=self._generator.device))
            return Seeds((number,))
        self._call_number += 1
        return dataclasses.replace(self._seeds, numbers=(*self._seeds.numbers, self._call_number))


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Return a context without autocast; entering torch's costs as much as several kernels."""
    if not torch.is_autocast_enabled(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)
