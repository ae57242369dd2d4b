"""Relative flatness of one layer on the batch that was just computed, for any training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..calculus.derivatives import SecondDerivativeError, gradients, refuse_once_differentiable
from ..layer.compilation import is_compiled
from ..layer.exact_norms import refuse_fused_norms
from ..layer.feature_layer import FeatureLayer
from ..layer.finding import AUTO, HEAD, find_head, resolve_layer, unwrap
from ..layer.forward_watch import ForwardWatch
from ..layer.kinds import has_bias
from ..layer.sharding import is_sharded, refuse_unsupported_sharding
from .batch import Batch, RecheckSchedule, Seeds
from .checks import check_captures, check_reaches_loss, explain, refuse_compiled_loss
from .estimators import (
    FULL,
    GRADIENTS,
    WEIGHTS_ONLY,
    ActsIn,
    Choice,
    Estimator,
    NoClosedForm,
    check_choice,
    default_lambda,
    estimator_names,
    make_estimator,
)
from .feature_mean import FeatureMean


class RelativeFlatness:
    """Relative flatness kappa of a layer, in the autograd graph of the loss; no second forward pass.

    ``kappa(W) = sum_{s,s'} <w_s, w_s'> Tr H_{s,s'}`` with ``H_{s,s'} = d2L / dw_s dw_s'`` (Petzka et al. 2021;
    Adilova et al. 2023, definition 3). A *small* kappa is *flat*.

    Args:
        model: the model that is trained.
        layer: ``"auto"`` (the head), ``"head"``, ``"representation"``, a dotted module name, or the module.
        estimator: ``"closed_form"`` (heads under softmax cross-entropy, sigmoid, squared error ...: exact),
            ``"row_probes"`` (the same from a random sketch of the weight, for large vocabularies), ``"hessian"``
            (random probes of the exact kappa, any layer and loss), ``"gauss_newton"`` (non-negative probes),
            ``"perturbation"`` (the loss itself under random feature perturbations, first order only), ``"dense"`` (the
            full Hessian of a small layer), or ``"auto"``: for the head the closed form, above 4096 classes row probes;
            elsewhere Gauss-Newton probes.
        probes: how many random probes are averaged; None for 16 row probes, or 1 probe of a tail. Closed form,
            perturbation and dense use none.
        generator: where the seeds of the probes come from; by default they are numbered, so that the random state of
            the training is untouched.
        gradient: ``"full"``, or ``"weights_only"``: the gradient reaches W alone (what the papers' released code
            effectively computes; for comparison).
        center: perturb the features around their running mean (`FeatureMean`) instead of around 0. The layer's bias
            takes up a shift of the features, so the function is the same; kappa then does not count what all items
            share, which in BERT's first token is most of ``||phi||^2``. The first batch only shows the mean: its kappa
            has no gradient. Not the papers' definition. For linear layers only, and not for dense, row probes or
            more than 4096 classes. None: where possible at a head that is trained alone and has a bias, as in the
            trainers.

    Attributes:
        layer: the `FeatureLayer`.
        mean: the features' running mean, or None without ``center``.
        at_head: whether the layer is the one into the logits, as far as the model tells.
        method: the `Estimator` in use, with its traits; another one if the loss has no closed form.
        watch: the hooks that a forward pass is captured with, and what they captured.
        default_strength: lambda where none is given, by the estimator that was chosen at first.
        ends_steps: whether every `capture` begins a new step of the running mean; whoever sets this to False calls
            ``mean.end_step`` when all micro-batches of a step are over.

    Raises:
        ValueError: an unknown layer, estimator or gradient; an estimator that cannot serve the layer; ``center`` for a
            layer or an estimator that has none; ``probes`` below 1; a model in ``torch.nn.DataParallel``.
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
    ) -> None:
        check_choice("estimator", estimator, estimator_names())
        check_choice("gradient", gradient, GRADIENTS)
        if probes is not None and (isinstance(probes, bool) or not isinstance(probes, int) or probes < 1):
            raise ValueError(f"probes={probes!r}: give a whole number of at least 1, or None.")
        self._model, self._layer_argument, self._center_argument = model, layer, center
        self.layer = FeatureLayer(model, layer)
        self._head_module = find_head(unwrap(model))[1]
        head = _head(model, self.layer, self._head_module)
        self.at_head = head is self.layer
        self.layer.copies |= not self.at_head  # cheap, as the logits of a large vocabulary are not
        self.method = make_estimator(
            estimator,
            Choice(model, self.layer, head, probes, gradient == WEIGHTS_ONLY, is_head_by_default=layer in (AUTO, HEAD)),
        )
        self._chosen = self.method
        self.default_strength = default_lambda(self.method.name, self.layer.out_features, at_head=self.at_head)
        if center is None:
            center = self.centers_by_default
        if center:
            self.method.refuse_to_center()
        self.mean = FeatureMean() if center else None
        self.ends_steps = True
        # The closed form needs no derivative of a tail, weights_only no third one.
        self._exact_norms = self.method.tail_derivatives == 3 and not self.at_head
        self.watch = ForwardWatch(
            model,
            self.layer,
            head if self.method.needs_logits else None,
            exact_norms=self._exact_norms,
            unfuse_head=self.at_head or self.method.tail_derivatives > 0,
        )
        self._model_class: type | None = None
        self._is_sharded = False
        self._schedule = RecheckSchedule()
        self._has_reached_loss = False
        self._generator = generator
        self._seeds = Seeds()
        self._count = 0
        self._reference: Tensor | None = None

    @property
    def estimator(self) -> str:
        """Name of the estimator in use; changes to ``"hessian"`` if the loss has no closed form."""
        return self.method.name

    @property
    def probes(self) -> int:
        """How many random probes are averaged, where there are any."""
        return self.method.probes

    @property
    def centers_by_default(self) -> bool:
        """What ``center=None`` means for the model as it is now: True if only a head with a bias is trained.

        Its bias takes up the mean of the features, so its function does not change.
        """
        alone = self.at_head and has_bias(self.layer.module) and self.layer.is_trained_alone(self._model)
        return alone and self._chosen.centers()

    @property
    def is_outdated(self) -> bool:
        """Whether an object made now would be another one.

        The model may have got a new head or an adapter since, or something may be trained that was not.
        """
        model = unwrap(self._model)
        if (
            resolve_layer(model, self._layer_argument)[1] is not self.layer.module
            or find_head(model)[1] is not self._head_module
        ):
            return True
        return self._center_argument is None and self.centers_by_default != (self.mean is not None)

    def seed(self, *numbers: int, first_item: int = 0, items: int | None = None) -> None:
        """Make the next probes a function of some numbers, so that a resumed run draws what an uninterrupted one does.

        With ``first_item`` it does not matter either how the batch of a step is cut into micro-batches and processes:
        every item gets the signs that it would get in the whole batch.

        Args:
            numbers: alike on every process and micro-batch of a step, such as a seed and the step.
            first_item: position of the next batch's first item in the whole batch of the step.
            items: how many items the next batch has, if rows of one item lie behind each other in the first dimension
                (flattened tokens, choices); None if that dimension counts the items.
        """
        self._seeds, self._count = Seeds(numbers, first_item, items), 0

    @contextlib.contextmanager
    def capture(self, strength: float | None = None) -> Iterator[None]:
        """Watch the forward pass inside the ``with`` block.

        Args:
            strength: lambda, which ``"perturbation"`` needs, as it acts in the forward pass. For a head of more than
                4096 classes under cross-entropy it saves memory: the term then acts in the backward pass, with this
                strength, and adding it to the loss has no further effect.

        Raises:
            ValueError: ``"perturbation"`` got no strength, or a negative one; the model is sharded by FSDP, and the
                estimator is another.
        """
        self._reference = None  # with it goes the graph of a pass that was never differentiated
        if self.mean is not None and self.ends_steps:
            self.mean.end_step()
        self._look_for_sharding()
        if self.mean is not None and self.mean.value is None and strength is not None:
            strength = min(strength, 0.0)  # the first batch only shows the mean
        self.method.begin(strength, self._next_seeds, None if self.mean is None else self.mean.value)
        with self.watch.capture():
            yield

    def __call__(self, loss: Tensor) -> Tensor:
        """Return kappa of the batch that was captured last, a scalar in the graph and in the units of ``loss``.

        With ``"perturbation"``, and for a large head that was captured with a strength, the term acts without being
        added: the result is zero, and once the backward pass is over it holds kappa.

        Args:
            loss: the scalar that the captured forward pass led to.

        Raises:
            ValueError: the loss is not a scalar, the layer was not called, or nothing at or below it is trainable.
            SecondDerivativeError: an operation above the layer, an attention kernel for instance, has no second
                derivative.
        """
        batch = self._batch(loss)
        is_examined = self._schedule.due()
        kappa = self._estimated(batch, is_examined)
        if self.mean is not None:
            kappa = kappa if self.mean.value is not None else kappa.detach()
            self.mean.note(batch.features)
        # A loss of 0 or NaN, of a batch without labels, says nothing.
        value = loss.detach()
        vanishes = is_examined and kappa.requires_grad and kappa.detach() == 0 and value.isfinite() and value != 0
        if vanishes and batch.graph.is_reached:
            warnings.warn(
                f"The relative flatness of '{self.layer.name}' is exactly 0 here: the loss has no curvature (absolute "
                "error, hinge), or the layer's weight is 0. While that is so, the term does nothing.",
                stacklevel=2,
            )
        return kappa

    def gradient_squares(self, loss: Tensor, kappa: Tensor) -> Tensor | None:
        """Return ``||d kappa||^2`` and ``||d loss||^2`` at the features of the batch that kappa was just taken of.

        Squares, because those of micro-batches and processes add up to those of the whole batch. Taken at phi, or at z
        where nothing below the layer is trainable. Where the term of a large head acts in the backward pass, they are
        taken at z, and zero until that is over. None for ``"perturbation"``, whose term has no gradient of its own.

        Args:
            loss: the loss that kappa was taken of.
            kappa: what calling this object returned.

        Returns:
            Shape ``(2,)``, in float32 at least.
        """
        reference, self._reference = self._reference, None
        return None if reference is None else self.method.gradient_squares(loss, kappa, reference)

    def detach(self) -> None:
        """Remove the hooks from the model; the next `capture` brings them back."""
        self.watch.detach()
        self.method.forget()
        self._reference = None

    def _estimated(self, batch: Batch, is_examined: bool) -> Tensor:
        method = self.method.for_batch(batch)
        try:
            if is_examined and method.tail_derivatives > 0:
                self._examine(batch, method)
            with torch.autocast(batch.loss.device.type, enabled=False):
                return method(batch)
        except NoClosedForm as error:
            self.method = self.method.replacement(error, batch)
            return self._estimated(batch, is_examined)
        except SecondDerivativeError as error:
            raise SecondDerivativeError(explain(error, self.layer, self.estimator)) from error

    def _examine(self, batch: Batch, method: Estimator) -> None:
        """Refuse a loss, by its graph, whose derivatives would be missing or wrong."""
        if self._has_reached_loss and not batch.graph.is_reached:
            return  # the batch of another task, whose loss has no curvature here
        check_reaches_loss(batch, self.layer, is_compiled(self._model))
        self._has_reached_loss = True
        refuse_compiled_loss(batch)
        method.check_batch(batch)
        if method.tail_derivatives > 1:
            refuse_once_differentiable(gradients(batch.loss, batch.pre_activations))
        if self._exact_norms:
            refuse_fused_norms(batch.graph)

    def _look_for_sharding(self) -> None:
        model = unwrap(self._model)
        if type(model) is not self._model_class:  # fully_shard gives a model another class
            self._model_class, self._is_sharded = type(model), is_sharded(model)
        if self._is_sharded:
            first_order = self.method.acts_in is ActsIn.FORWARD_PASS
            refuse_unsupported_sharding(model, self.layer, self.estimator, first_order=first_order)
            self.method.adapt_to_sharding()

    def _batch(self, loss: Tensor) -> Batch:
        captures, heads = self.watch.take()
        check_captures(loss, self.layer, self.method.choice.head, captures, heads)
        assert captures
        first = captures[0]
        self._reference = first.features if first.features.requires_grad else first.pre_activations
        return Batch(
            loss=loss,
            features=[c.features for c in captures],
            pre_activations=[c.pre_activations for c in captures],
            linear_map=self.layer.linear_map,
            logits=[c.pre_activations for c in heads],
            seeds=self._next_seeds(),
            weights_only=self.method.weights_only,
            center=None if self.mean is None else self.mean.of([c.features for c in captures]),
        )

    def _next_seeds(self) -> Seeds:
        if self._generator is not None:
            drawn = int(torch.randint(2**62, (), generator=self._generator, device=self._generator.device))
            return Seeds((drawn,))
        self._count += 1
        return dataclasses.replace(self._seeds, numbers=(*self._seeds.numbers, self._count))


def _head(model: nn.Module, layer: FeatureLayer, module: nn.Module) -> FeatureLayer | None:
    """The layer into the logits: the feature layer itself, another one, or None if it is of an unknown kind."""
    if module is layer.module:
        return layer
    with contextlib.suppress(TypeError):
        return FeatureLayer(model, module)
    return None
