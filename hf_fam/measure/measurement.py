"""The passes over the data of one measurement: a first look, the stream, a record of every layer."""

from __future__ import annotations

import contextlib
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..calculus.derivatives import SecondDerivativeError
from ..calculus.lanczos import Eigenvalues
from ..flatness.row_blocks import RowBlocks
from ..layer.feature_layer import Capture, FeatureLayer
from ..layer.finding import find_head, unwrap
from .data import Batches, count_items, item_weights, to_device
from .forward import LossFunction, Watch
from .layer_measurement import LayerMeasurement
from .normalization import FeatureDeviation
from .results import LayerFlatness
from .spectrum import largest_eigenvalue_of_layer, largest_eigenvalues_of_rows

TRACE, MAX_EIGENVALUE, LAYERWISE = "trace", "max_eigenvalue", "layerwise"
HESSIAN_MAX_EIGENVALUE = "hessian_max_eigenvalue"
MEASURES = (TRACE, MAX_EIGENVALUE, LAYERWISE, HESSIAN_MAX_EIGENVALUE)


class Run:
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
        """What is proven on the first batch with labels, and the features' deviations.

        Raises:
            ValueError: no item has a label.
        """
        if estimator == "gauss_newton" and self._head is None:
            _, head = find_head(unwrap(self.model))
            self._head = FeatureLayer(unwrap(self.model), head)
            self._others = [self._head]
        # A batch without labels has no curvature: on it everything would be proven.
        first = to_device(self._batches.first(lambda batch: bool(self._weights(batch).any())), self._device)
        deviations = self._deviations() if normalize else [None] * len(self._layers)
        measurements = []
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
        unconverged: dict[str, Eigenvalues] = {}
        if MAX_EIGENVALUE in measures:
            of_rows = largest_eigenvalues_of_rows(measurement, self, total)
            kappa_max = float(squares @ of_rows.values.to(squares)) + 2 * alpha * square
            if not of_rows.converged.all():
                unconverged["kappa_max"] = of_rows
        if HESSIAN_MAX_EIGENVALUE in measures:
            of_layer = largest_eigenvalue_of_layer(measurement, self, total)
            top = float(of_layer.values) + 2 * alpha
            if not of_layer.converged.all():
                unconverged["hessian_max_eigenvalue"] = of_layer
        _warn_of_bounds(layer.name, unconverged)
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
            not_converged=tuple(unconverged),
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
                weights = self._weights(batch)
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
        weights = self._weights(batch)
        if not weights.any():  # no label counts
            return
        loss, captures = watch(batch)
        share = (time.perf_counter() - started) / len(measurements)
        logits = self._logits(captures)
        for measurement, captured in zip(measurements, captures, strict=False):
            measurement.add(loss, captured, logits, number, weights)
            measurement.seconds += share
        scale = float(weights.sum())
        labeled = float(weights.count_nonzero())
        self._sums += torch.tensor([scale * float(loss.detach()), scale, labeled], dtype=torch.float64)

    def _weights(self, batch: Any) -> Tensor:
        return item_weights(self.model, batch, count_items(batch))

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


def _warn_of_bounds(layer: str, unconverged: dict[str, Eigenvalues]) -> None:
    for name, found in unconverged.items():
        missed = found.residuals[~found.converged].max() / found.values.abs().max()
        warnings.warn(
            f"{name} of '{layer}' is a lower bound: Lanczos iterations were at their limit before {len(found.values)} "
            f"eigenvalue(s) had converged, {int((~found.converged).sum())} of them with residuals of up to "
            f"{float(missed):.2g} of the largest.",
            stacklevel=4,
        )
