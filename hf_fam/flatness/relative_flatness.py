"""Relative flatness of one layer on the batch that was just computed, for any training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..calculus.derivatives import SecondDerivativeError, gradients, range_scale, refuse_once_differentiable, wide
from ..layer.compilation import is_compiled
from ..layer.exact_norms import ExactNorms, refuse_fused_norms
from ..layer.feature_layer import Capture, FeatureLayer
from ..layer.finding import AUTO, HEAD, find_head, resolve_layer, unwrap
from ..layer.fused_head import UnfusedHead
from ..layer.sharding import is_sharded, refuse_unsupported_sharding
from .batch import Batch, RecheckSchedule, Seeds
from .checks import (
    centers_by_default,
    check_captures,
    check_logits,
    check_reaches_loss,
    explain,
    reaches_loss,
    refuse_compiled_loss,
    refuse_to_center,
    refuse_without_closed_form,
)
from .estimators import (
    DENSE,
    ESTIMATORS,
    FULL,
    GAUSS_NEWTON,
    GRADIENTS,
    HEAD_ESTIMATORS,
    HESSIAN,
    PERTURBATION,
    ROW_PROBES,
    ROW_PROBES_BY_DEFAULT,
    TAIL_PROBES,
    WEIGHTS_ONLY,
    check_choice,
    choose_estimator,
    make_estimator,
    refuse_tied_weight,
)
from .feature_mean import FeatureMean
from .head_injection import HeadInjection
from .head_sampling import HeadSampling, check_token_fraction
from .heads import LARGE_VOCABULARY, NoClosedForm
from .hessian_probe import HessianProbes
from .loss_graph import is_cross_entropy
from .perturbation import FeaturePerturbation


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
        token_fraction: for ``"closed_form"`` and ``"row_probes"`` under softmax cross-entropy: the part of the rows
            with a label that is looked at, drawn anew every time, above 0 and at most 1. Unbiased.
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
        estimator: name of the estimator in use; changes to ``"hessian"`` if the loss has no closed form.
        ends_steps: whether every `capture` begins a new step of the running mean; whoever sets this to False calls
            ``mean.end_step`` when all micro-batches of a step are over.

    Raises:
        ValueError: an unknown layer, estimator or gradient; an estimator that cannot serve the layer; ``center`` for a
            layer or an estimator that has none; ``probes`` below 1; ``token_fraction`` out of range or for another
            estimator; a model in ``torch.nn.DataParallel``.
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
        token_fraction: float = 1.0,
        center: bool | None = False,
    ) -> None:
        check_choice("estimator", estimator, ESTIMATORS)
        check_choice("gradient", gradient, GRADIENTS)
        if probes is not None and (isinstance(probes, bool) or not isinstance(probes, int) or probes < 1):
            raise ValueError(f"probes={probes!r}: give a whole number of at least 1, or None.")
        check_token_fraction("token_fraction", token_fraction)
        self._model, self._asked, self._center = model, layer, center
        self._unfused = UnfusedHead(unwrap(model))
        self.layer = FeatureLayer(model, layer)
        self._taken_for_head = layer in (AUTO, HEAD)
        self._looked_at: type | None = None
        self._sharded = False
        self._head_module = find_head(unwrap(model))[1]
        self._head = _head(model, self.layer, self._head_module)
        self.at_head = self._head is self.layer
        self.layer.copies |= self._head is not self.layer  # cheap, as the logits of a large vocabulary are not
        self.estimator = choose_estimator(estimator, self.layer, self._head)
        if gradient == WEIGHTS_ONLY and self.estimator == PERTURBATION:
            raise ValueError(
                f'gradient="{WEIGHTS_ONLY}" is not possible with estimator="{PERTURBATION}", which perturbs the loss '
                f'itself: use "{HESSIAN}" or "{GAUSS_NEWTON}".'
            )
        if token_fraction != 1 and self.estimator not in HEAD_ESTIMATORS:
            raise ValueError(
                f'token_fraction={token_fraction!r} is for the layer into the logits, and estimator="{self.estimator}" '
                f"was chosen for '{self.layer.name}': leave it at 1."
            )
        self.probes = probes or (ROW_PROBES_BY_DEFAULT if self.estimator == ROW_PROBES else TAIL_PROBES)
        self._chosen = self.estimator  # another takes over where the loss has no closed form
        if center is None:
            center = self.centers_by_default
        if center:
            refuse_to_center(self.layer, self.estimator)
        self.mean = FeatureMean() if center else None
        self.ends_steps = True
        if self.estimator == DENSE:
            refuse_tied_weight(unwrap(model), self.layer)
        self._weights_only = gradient == WEIGHTS_ONLY
        sampling = HeadSampling(self.probes if self.estimator == ROW_PROBES else 0, float(token_fraction))
        self._estimate = make_estimator(self.estimator, self.probes, sampling)
        # Where the logits are many, the term acts in the backward pass, if lambda is known by then.
        large = self.layer.out_features > LARGE_VOCABULARY and self.layer.linear_map.groups == 1
        acts_there = large and self.estimator in HEAD_ESTIMATORS
        self._injection = HeadInjection(sampling, self._weights_only) if acts_there else None
        self._injected = False
        # The closed form needs no derivative of a tail, weights_only no third one.
        third_order = self.estimator in (HESSIAN, GAUSS_NEWTON, DENSE) and not self._weights_only
        self._norms = ExactNorms(unwrap(model), self.layer) if third_order and self._head is not self.layer else None
        self._schedule = RecheckSchedule()
        self._reached = False  # the loss has been seen to depend on the layer
        self._generator = generator
        self._seeds = Seeds()
        self._count = 0
        self._captures: list[Capture] | None = None
        self._head_captures: list[Capture] | None = None
        self._reference: Tensor | None = None

    @property
    def centers_by_default(self) -> bool:
        """What ``center=None`` means for the model as it is now."""
        return self.at_head and centers_by_default(self._model, self.layer, self._chosen)

    @property
    def is_outdated(self) -> bool:
        """Whether an object made now would be another one.

        The model may have got a new head or an adapter since, or something may be trained that was not.
        """
        model = unwrap(self._model)
        if (
            resolve_layer(model, self._asked)[1] is not self.layer.module
            or find_head(model)[1] is not self._head_module
        ):
            return True
        return self._center is None and self.centers_by_default != (self.mean is not None)

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
        module = unwrap(self._model)
        if type(module) is not self._looked_at:  # fully_shard gives a model another class
            self._looked_at, self._sharded = type(module), is_sharded(module)
        if self._sharded:
            self._adapt_to_sharding()
        if isinstance(self._estimate, FeaturePerturbation):
            self._begin_perturbation(strength)
        self._begin_injection(strength)
        if self._norms is not None:
            self._norms.attach()
        with contextlib.ExitStack() as stack:
            self._captures = stack.enter_context(self.layer.capture())
            self._head_captures = self._captures
            if self.estimator == GAUSS_NEWTON and self._head is not None and self._head is not self.layer:
                self._head_captures = stack.enter_context(self._head.capture())
            if self.estimator != PERTURBATION or self._head is self.layer:
                self._unfused.attach()
                stack.callback(self._unfused.detach)
            yield

    def __call__(self, loss: Tensor) -> Tensor:
        """kappa of the batch that was captured last, a scalar in the graph and in the units of ``loss``.

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
        looking = self._schedule.due()
        kappa = self._estimated(batch, looking)
        if self.mean is not None:
            kappa = kappa if self.mean.value is not None else kappa.detach()
            self.mean.note(batch.features)
        # A loss of 0 or NaN, of a batch without labels, says nothing.
        value = loss.detach()
        vanishes = looking and kappa.requires_grad and kappa.detach() == 0 and value.isfinite() and value != 0
        if vanishes and reaches_loss(batch):
            warnings.warn(
                f"The relative flatness of '{self.layer.name}' is exactly 0 here: the loss has no curvature (absolute "
                "error, hinge), or the layer's weight is 0. While that is so, the term does nothing.",
                stacklevel=2,
            )
        return kappa

    def gradient_squares(self, loss: Tensor, kappa: Tensor) -> Tensor | None:
        """``||d kappa||^2`` and ``||d loss||^2`` at the features of the batch that kappa was just taken of.

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
        if self._injected and self._injection is not None and not self._weights_only:
            return self._injection.gradient_squares(kappa)
        if reference is None or not kappa.requires_grad:
            return None
        return torch.stack([_gradient_norm(y, reference).square() for y in (kappa, loss)])

    def detach(self) -> None:
        """Remove the hooks from the model; the next `capture` brings them back."""
        for layer in (self.layer, self._head):
            if layer is not None:
                layer.detach()
                layer.perturb = None
        if self._norms is not None:
            self._norms.detach()
        if self._injection is not None:
            self._injection.forget()
        self._captures = self._head_captures = self._reference = None

    def _estimated(self, batch: Batch, looking: bool) -> Tensor:
        try:
            if self._injected and self._injection is not None:
                if len(batch.pre_activations) == 1 and is_cross_entropy(batch.loss, batch.pre_activations[0]):
                    return self._injection(batch)
                self._injection.cancel()
                self._injected, self._injection, self.layer.perturb = False, None, None  # from now on in the loss
            if looking and self.estimator != PERTURBATION:  # whose loss backward() alone may be able to differentiate
                self._check_graph(batch)
            with torch.autocast(batch.loss.device.type, enabled=False):
                return self._estimate(batch)
        except NoClosedForm as error:
            refuse_without_closed_form(error, batch, self.layer, self._head, self.estimator, self._taken_for_head)
            warnings.warn(
                f"The closed form does not hold for this loss at '{self.layer.name}': {error}. Using Hessian probes "
                f'instead (estimator="{HESSIAN}" says so from the start).',
                stacklevel=3,
            )
            self.probes = TAIL_PROBES if self.estimator == ROW_PROBES else self.probes
            self.estimator, self._estimate = HESSIAN, HessianProbes(self.probes)
            return self._estimated(batch, looking)
        except SecondDerivativeError as error:
            raise SecondDerivativeError(explain(error, self.layer, self.estimator)) from error

    def _check_graph(self, batch: Batch) -> None:
        if self._reached and not reaches_loss(batch):
            return  # the batch of another task, whose loss has no curvature here
        check_reaches_loss(batch, self.layer, is_compiled(self._model))
        self._reached = True
        refuse_compiled_loss(batch)
        if self.estimator == GAUSS_NEWTON and self._head is not None:
            check_logits(batch, self.layer, self._head)
        if self._injection is None:
            refuse_once_differentiable(gradients(batch.loss, batch.pre_activations))
        if self._norms is not None:
            refuse_fused_norms(batch.loss, batch.pre_activations)

    def _begin_perturbation(self, strength: float | None) -> None:
        assert isinstance(self._estimate, FeaturePerturbation)
        if strength is None or not math.isfinite(strength) or strength < 0:
            raise ValueError(
                f'strength={strength!r}: estimator="{PERTURBATION}" acts in the forward pass, so write '
                "capture(strength=0.003), with a lambda that is not negative."
            )
        if self.mean is not None:
            strength = 0.0 if self.mean.value is None else strength
            self._estimate.center = self.mean.value
        self._estimate.begin(strength, self._next_seeds())
        self.layer.perturb = self._estimate.perturb

    def _begin_injection(self, strength: float | None) -> None:
        self._injected = False
        if self._injection is None:
            return
        self.layer.perturb = None
        if strength is None:
            return
        if not math.isfinite(strength) or strength < 0:
            raise ValueError(f"strength={strength!r}: give a finite lambda of at least 0.")
        self._injected = True
        injection, layer = self._injection, self.layer
        injection.begin(strength, self._next_seeds())
        layer.perturb = injection.inject

    def _adapt_to_sharding(self) -> None:
        perturbation = isinstance(self._estimate, FeaturePerturbation)
        refuse_unsupported_sharding(unwrap(self._model), self.layer, self.estimator, first_order=perturbation)
        if isinstance(self._estimate, FeaturePerturbation):
            self._estimate.assume_coupled()

    def _batch(self, loss: Tensor) -> Batch:
        captures, self._captures = self._captures, None
        heads, self._head_captures = self._head_captures, None
        check_captures(loss, self.layer, self._head, captures, heads or [])
        assert captures
        first = captures[0]
        self._reference = first.features if first.features.requires_grad else first.pre_activations
        return Batch(
            loss=loss,
            features=[c.features for c in captures],
            pre_activations=[c.pre_activations for c in captures],
            linear_map=self.layer.linear_map,
            logits=[c.pre_activations for c in heads or []],
            seeds=self._next_seeds(),
            weights_only=self._weights_only,
            center=None if self.mean is None else self.mean.of([c.features for c in captures]),
        )

    def _next_seeds(self) -> Seeds:
        if self._generator is not None:
            drawn = int(torch.randint(2**62, (), generator=self._generator, device=self._generator.device))
            return Seeds((drawn,))
        self._count += 1
        return dataclasses.replace(self._seeds, numbers=(*self._seeds.numbers, self._count))


def _gradient_norm(output: Tensor, reference: Tensor) -> Tensor:
    scale = range_scale(output, [reference])
    (gradient,) = gradients(output, [reference], scale, create_graph=False)
    return torch.linalg.vector_norm(gradient.to(wide(gradient.dtype))) / scale


def _head(model: nn.Module, layer: FeatureLayer, module: nn.Module) -> FeatureLayer | None:
    """The layer into the logits: the feature layer itself, another one, or None if it is of an unknown kind."""
    if module is layer.module:
        return layer
    with contextlib.suppress(TypeError):
        return FeatureLayer(model, module)
    return None
