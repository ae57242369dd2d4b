"""``measure_relative_flatness``: streams a data set through a model and measures several layers at once."""

from __future__ import annotations

import contextlib
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..estimators import check_choice
from ..feature_layer import AUTO, HEAD, REPRESENTATION, Capture, FeatureLayer, find_head, unwrap, weighted_layers
from ..flatness.curvature import SecondDerivativeError
from ..flatness.row_blocks import RowBlocks
from .data import Batches, count_items, item_weights, to_device
from .forward import LossFunction, Watch, looked_at
from .layer_measurement import LayerMeasurement
from .normalization import FeatureDeviation
from .records import FlatnessTable, LayerFlatness
from .spectrum import largest_eigenvalue_of_layer, largest_eigenvalues_of_rows

TRACE, MAX_EIGENVALUE, LAYERWISE = "trace", "max_eigenvalue", "layerwise"
HESSIAN_MAX_EIGENVALUE = "hessian_max_eigenvalue"
MEASURES = (TRACE, MAX_EIGENVALUE, LAYERWISE, HESSIAN_MAX_EIGENVALUE)
ALL = "all"


def measure_relative_flatness(
    model: nn.Module,
    dataset_or_dataloader: Any,
    layers: str | nn.Module | Sequence[str | nn.Module] = AUTO,
    measures: Sequence[str] = (TRACE, MAX_EIGENVALUE, LAYERWISE),
    *,
    normalize_features: bool = False,
    estimator: str = AUTO,
    probes: int = 2,
    relative_error: float | None = None,
    weight_decay: float = 0.0,
    batch_size: int = 32,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    loss_fn: LossFunction | None = None,
    accelerator: Any = None,
    seed: int = 0,
    progress: bool | None = None,
) -> FlatnessTable:
    """Relative flatness of layers of a trained model over a data set, with standard errors.

    ``kappa(W) = sum_{s,s'} <w_s, w_s'> Tr H_{s,s'}`` with ``H_{s,s'} = d2L / dw_s dw_s'`` and L the mean loss over
    the data (Petzka et al. 2021); ``kappa_max = sum_s ||w_s||^2 lambda_max(H_{s,s})`` (their measuring
    code); the layer-wise version ``||W||_F^2 Tr H`` (their section 3.2). A *small* kappa is *flat*.

    The head is measured in closed form, which is exact, where its loss has one; other layers by random probes of the
    Hessian, or exactly where that takes no more products. All layers share one forward pass of every batch; memory
    does not grow with the data. Model, gradients, training mode and random states are as before afterwards. Several
    processes (``accelerator``) share the batches and return the numbers of a single one.

    Cost: a forward pass of the data; ``2 * probes`` Hessian-vector products of the tail of every layer that has no
    closed form (``probes`` without ``"layerwise"``). ``"max_eigenvalue"`` takes, where rows of pre-activations are not
    coupled, d products of every batch instead, and everything is exact; else it adds 10 to 40 passes over the data
    with d products of every batch each: leave it out for wide layers below attention. ``"hessian_max_eigenvalue"``
    takes 10 to 40 passes with one product. For eigenvalues 2^26 numbers a layer are kept at most.

    Args:
        model: as it was trained; its parameters are not touched.
        dataset_or_dataloader: a data set (map-style, iterable or a list) or a ``DataLoader`` of what the model takes,
            with labels; it may be read several times. A shuffling loader is read in the same order each time.
        layers: ``"auto"`` (representation and head), ``"all"``, or one or several of: ``"head"``,
            ``"representation"``, dotted names, modules.
        measures: what to compute: ``"trace"`` (kappa, always computed), ``"max_eigenvalue"`` (kappa_max),
            ``"layerwise"`` (with Tr H), ``"hessian_max_eigenvalue"`` (of the whole layer; not a relative flatness).
        normalize_features: divide every feature by its standard deviation over the data, and multiply the column of W,
            before measuring (the published measuring code does so): removes the dependence on the scale of single
            features. Features that are constant over the data are left out, as the bias is. Takes a further pass.
        estimator: ``"auto"``, ``"hessian"`` or ``"gauss_newton"`` (never negative) for what has no closed form.
        probes: random directions for every batch; two give the error that is due to them.
        relative_error: stop as soon as ``standard_error <= relative_error * |kappa|`` for every layer. What was read
            until then must stand for the rest: the data must be in random order.
        weight_decay: alpha, if the objective that is measured is ``L + alpha ||W||^2``: adds ``2 alpha m ||W||^2`` to
            kappa, ``2 alpha ||W||^2`` to kappa_max and ``2 alpha d m`` to Tr H. An optimiser's ``weight_decay`` is
            2 alpha. With ``normalize_features`` W is the normalised weight here, too.
        batch_size: items of a batch, where no loader is given.
        collate_fn: how items become a batch, where no loader is given.
        loss_fn: ``loss_fn(model, batch)`` returns the mean loss of a batch; by default ``model(**batch).loss``. Batches
            count by their number of items, or of labels that are not -100 where labels are tokens.
        accelerator: an ``accelerate.Accelerator``, to share the work among its processes.
        seed: of the probes.
        progress: show a progress bar; by default on a terminal.

    Returns:
        A sequence with one record a layer, see `LayerFlatness`; prints as a table.

    Raises:
        ValueError: no data, an unknown layer, measure or estimator; a missing column; a model without a loss; a label
            outside the classes.
        TypeError: a layer of a kind that is not supported; data that is neither data set nor loader.
        SecondDerivativeError: an operation above a layer has no second derivative.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> data = torch.utils.data.TensorDataset(torch.randn(60, 4), torch.randint(0, 3, (60,)))
        >>> def loss_fn(model, batch):
        ...     return nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> table = measure_relative_flatness(model, data, layers=["0", "head"], loss_fn=loss_fn)
        >>> [(record.layer, record.estimator, record.num_items) for record in table]
        [('0', 'hessian', 60), ('2', 'closed_form', 60)]
        >>> table["2"].kappa > 0 and table["2"].standard_error_probes == 0
        True
    """
    _check(measures, estimator, probes, relative_error, weight_decay)
    processes = 1 if accelerator is None else accelerator.num_processes
    rank = 0 if accelerator is None else accelerator.process_index
    batches = Batches(dataset_or_dataloader, batch_size, collate_fn, rank=rank, processes=processes, seed=seed)
    chosen = chosen_layers(unwrap(model), layers)
    run = _Run(model, batches, chosen, loss_fn, accelerator, progress)
    with looked_at(model) as run.model:
        measurements = run.prepare(measures, normalize_features, estimator, probes, seed)
        run.stream(measurements, relative_error)
        records = [run.record(m, measures, weight_decay) for m in measurements]
    settings = {
        "model": type(unwrap(model)).__name__,
        "measures": list(measures),
        "normalize_features": normalize_features,
        "probes": probes,
        "relative_error": relative_error,
        "weight_decay": weight_decay,
        "seed": seed,
        "stopped_early": run.stopped_early,
    }
    return FlatnessTable(records, settings)


def chosen_layers(model: nn.Module, layers: str | nn.Module | Sequence[str | nn.Module]) -> list[FeatureLayer]:
    """The layers that ``layers`` stands for, each once.

    Raises:
        ValueError: no layer was given, or one is unknown.
        TypeError: a layer that was named is of a kind that is not supported.
    """
    if isinstance(layers, str) and layers == ALL:
        found, skipped = [], []
        for name, module in weighted_layers(model):
            try:
                found.append(FeatureLayer(model, module))
            except TypeError:
                skipped.append(name)
        if skipped:
            warnings.warn(
                f'layers="all" leaves out layers of kinds that are not supported: {", ".join(skipped)}.', stacklevel=3
            )
    elif isinstance(layers, str) and layers == AUTO:
        found = [FeatureLayer(model, HEAD)]
        with contextlib.suppress(ValueError, TypeError):  # a head alone, or a representation of an unsupported kind
            found.insert(0, FeatureLayer(model, REPRESENTATION))
    else:
        several = [layers] if isinstance(layers, (str, nn.Module)) else list(layers)
        found = [FeatureLayer(model, layer) for layer in several]
    unique = {id(layer.module): layer for layer in found}
    if not unique:
        raise ValueError('layers is empty: name at least one layer, or use layers="auto".')
    return list(unique.values())


class _Run:
    """The passes over the data of one measurement."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        layers: list[FeatureLayer],
        loss_fn: LossFunction | None,
        accelerator: Any,
        progress: bool | None,
    ) -> None:
        self.model, self._batches, self._layers = model, batches, layers
        self._loss_fn, self._accelerator = loss_fn, accelerator
        shown = sys.stderr.isatty() if progress is None else progress
        self._progress = shown and (accelerator is None or accelerator.is_main_process)
        parameter = next(model.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device
        _, head = find_head(unwrap(model))
        self._head = next((layer for layer in layers if layer.module is head), None)
        self._others: list[FeatureLayer] = []
        self._read: int | None = None  # batches of this process that were read before stopping
        self._sums = torch.zeros(3, dtype=torch.float64)  # loss, weights, items
        self.stopped_early = False

    def prepare(
        self, measures: Sequence[str], normalize: bool, estimator: str, probes: int, seed: int
    ) -> list[LayerMeasurement]:
        """What is proven on the first batch, and the features' deviations."""
        if estimator == "gauss_newton" and self._head is None:
            _, head = find_head(unwrap(self.model))
            self._head = FeatureLayer(unwrap(self.model), head)
            self._others = [self._head]
        deviations = self._deviations() if normalize else [None] * len(self._layers)
        measurements = []
        first = to_device(self._batches.first(), self._device)
        with self._watch() as watch, explained():
            loss, captures = watch(first)
            logits = self._logits(captures)
            for layer, captured, deviation in zip(self._layers, captures, deviations, strict=False):
                blocks = None
                if MAX_EIGENVALUE in measures:
                    blocks = RowBlocks(layer.out_features, layer.in_features)
                of_layer = LayerMeasurement(
                    layer, layer is self._head, estimator, probes, LAYERWISE in measures, blocks, deviation, seed
                )
                of_layer.begin(loss, captured, logits)
                measurements.append(of_layer)
        return measurements

    def stream(self, measurements: list[LayerMeasurement], relative_error: float | None) -> None:
        """The pass over the data."""
        numbered = iter(self._with_bar(self._batches.mine(), "relative flatness"))
        count = 0
        with self._watch() as watch, explained():
            while True:
                item = next(numbered, None)
                if item is not None:
                    self._add(watch, measurements, *item)
                    count += 1
                if relative_error is not None:
                    left = self.reduce(torch.tensor([float(item is not None)], dtype=torch.float64))
                    if left == 0:
                        break
                    if self._precise(measurements, relative_error):
                        self._read, self.stopped_early = count, next(numbered, None) is not None
                        break
                elif item is None:
                    break
        if relative_error is not None and not self.stopped_early:
            self._warn_if_imprecise(measurements, relative_error)

    def record(self, measurement: LayerMeasurement, measures: Sequence[str], alpha: float) -> LayerFlatness:
        """What came out for one layer, and the passes that its eigenvalues take."""
        started = time.perf_counter()
        layer, exact = measurement.layer, measurement.exact
        kappa = measurement.kappa.mean(self.reduce, exact=exact)
        of_trace = measurement.trace.mean(self.reduce, exact=exact) if LAYERWISE in measures else None
        weight = measurement.weight
        squares = weight.double().square().sum(-1)
        square, m, d = float(squares.sum()), layer.in_features, layer.out_features
        loss, total, items = self.reduce(self._sums.clone()).tolist()
        kappa_max = top = None
        if MAX_EIGENVALUE in measures:
            values = largest_eigenvalues_of_rows(measurement, self, total)
            kappa_max = float(squares @ values.to(squares)) + 2 * alpha * square
        if HESSIAN_MAX_EIGENVALUE in measures:
            top = largest_eigenvalue_of_layer(measurement, self, total) + 2 * alpha
        layerwise = None
        if of_trace is not None:
            layerwise = measurement.layerwise.mean(self.reduce).value + 2 * alpha * m * self._group_sizes(measurement)
        trace = None if of_trace is None else of_trace.value + 2 * alpha * d * m
        return LayerFlatness(
            layer=layer.name,
            kappa=kappa.value + 2 * alpha * m * square,
            standard_error=kappa.error,
            standard_error_items=kappa.items_error,
            standard_error_probes=kappa.probes_error,
            kappa_max=kappa_max,
            layerwise=layerwise,
            hessian_trace=trace,
            hessian_trace_error=None if of_trace is None else of_trace.error,
            hessian_max_eigenvalue=top,
            weight_norm=math.sqrt(square),
            in_features=m,
            out_features=d,
            num_items=round(items),
            loss=loss / total,
            estimator=measurement.estimator,
            coupling=measurement.coupling.value,
            probes=measurement.probes,
            products=round(float(self.reduce(torch.tensor([float(measurement.products)])))),
            seconds=measurement.seconds + time.perf_counter() - started,
            item_kappas=measurement.sample.merged(self._gather),
        )

    @staticmethod
    def _group_sizes(measurement: LayerMeasurement) -> float:
        """``sum_g ||W_g||^2 d_g``, what a unit of curvature of every weight adds to the layer-wise version by m."""
        groups = measurement.linear_map.groups
        return float(measurement.weight.double().square().sum()) * measurement.linear_map.out_features / groups

    def passes(self, layer: FeatureLayer, name: str) -> Iterator[tuple[Tensor, list[Capture], float]]:
        """Another pass over what was read: loss, captures and weight of every batch."""
        with Watch(self.model, [layer], self._loss_fn) as watch:
            for _, given in self._with_bar(self._batches.mine(self._read), name):
                batch = to_device(given, self._device)
                weights = item_weights(self.model, batch, count_items(batch))
                if weights.any():
                    loss, (captured,) = watch(batch)
                    yield loss, captured, float(weights.sum())

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sum over the processes."""
        if self._accelerator is None or self._accelerator.num_processes == 1:
            return tensor
        device = self._accelerator.device
        return self._accelerator.reduce(tensor.to(device), reduction="sum").to(tensor.device)

    def _gather(self, tensor: Tensor) -> Tensor:
        if self._accelerator is None or self._accelerator.num_processes == 1:
            return tensor
        return self._accelerator.gather(tensor.to(self._accelerator.device)).cpu()

    def _watch(self) -> Watch:
        return Watch(self.model, [*self._layers, *self._others], self._loss_fn)

    def _logits(self, captures: list[list[Capture]]) -> list[Capture]:
        if self._head is None:
            return []
        return captures[[*self._layers, *self._others].index(self._head)]

    def _add(self, watch: Watch, measurements: list[LayerMeasurement], number: int, given: Any) -> None:
        started = time.perf_counter()
        batch = to_device(given, self._device)
        weights = item_weights(self.model, batch, count_items(batch))
        if not weights.any():  # no label counts
            return
        loss, captures = watch(batch)
        share = (time.perf_counter() - started) / len(measurements)
        logits = self._logits(captures)
        for measurement, captured in zip(measurements, captures, strict=False):
            measurement.add(loss, captured, logits, number, weights)
            measurement.seconds += share
        scale = float(weights.sum())
        self._sums += torch.tensor([scale * float(loss.detach()), scale, float(len(weights))], dtype=torch.float64)

    def _deviations(self) -> list[Tensor | None]:
        found = [FeatureDeviation(layer.linear_map) for layer in self._layers]
        with self._watch() as watch:
            for _, batch in self._with_bar(self._batches.mine(), "standard deviations"):
                _, captures = watch(to_device(batch, self._device))
                for deviation, captured in zip(found, captures, strict=False):
                    for call in captured:
                        deviation.add(call.features)
        return [deviation.result(self.reduce).to(self._device) for deviation in found]

    def _precise(self, measurements: list[LayerMeasurement], relative_error: float) -> bool:
        means = [m.kappa.mean(self.reduce, exact=m.exact) for m in measurements]
        return all(mean.error <= relative_error * abs(mean.value) for mean in means)

    def _warn_if_imprecise(self, measurements: list[LayerMeasurement], relative_error: float) -> None:
        for m in measurements:
            mean = m.kappa.mean(self.reduce, exact=m.exact)
            if not mean.error <= relative_error * abs(mean.value):
                more = "probes" if mean.probes_error > mean.items_error else "items"
                warnings.warn(
                    f"relative_error={relative_error:g} was not reached at '{m.layer.name}': the standard error is "
                    f"{mean.error / abs(mean.value):.2g} of kappa, most of it would be reduced by more {more}.",
                    stacklevel=4,
                )

    def _with_bar(self, batches: Any, name: str) -> Any:
        if not self._progress:
            return batches
        from tqdm.auto import tqdm

        return tqdm(batches, desc=name, total=self._batches.length, leave=False)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Say what to do where something above a layer has no second derivative."""
    try:
        yield
    except SecondDerivativeError as error:
        raise SecondDerivativeError(
            "an operation above a layer that is measured has no second derivative "
            f'({str(error).splitlines()[0]}). If it is attention, call model.set_attn_implementation("eager"); else '
            'choose layers above it, such as layers="head".'
        ) from error


def _check(
    measures: Sequence[str], estimator: str, probes: int, relative_error: float | None, weight_decay: float
) -> None:
    if isinstance(measures, str):
        raise ValueError(f"measures={measures!r}: give a sequence of names, such as ({measures!r},).")
    for measure in measures:
        check_choice("measures", measure, MEASURES)
    check_choice("estimator", estimator, (AUTO, "hessian", "gauss_newton"))
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"probes={probes!r}: give a whole number of at least 1.")
    if relative_error is not None and not 0 < relative_error < 1:
        raise ValueError(f"relative_error={relative_error!r}: give a number between 0 and 1, such as 0.05.")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay={weight_decay!r}: give a number that is not negative.")
