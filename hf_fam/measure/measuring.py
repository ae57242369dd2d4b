"""Measure the relative flatness of several layers of a model in one pass over a data set."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from ..flatness.estimators import check_choice
from ..inputs.kinds import require_flag, require_function
from ..inputs.numbers import LARGEST_SEED, MOST_PROBES, require_number, require_whole
from ..inputs.text import quote
from ..layer.feature_layer import FeatureLayer
from ..layer.finding import AUTO, HEAD, REPRESENTATION, unwrap, weighted_layers
from .data import Batches
from .forward import LossFunction, frozen_for_evaluation
from .measurement_run import LAYERWISE, MAX_EIGENVALUE, MEASURES, TRACE, MeasurementRun
from .results import FlatnessTable
from .row_probes import ROW_PROBES

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
    """Measure the relative flatness of layers of a trained model over a data set.

    Every value has a standard error.

    ``kappa(W) = sum_{s,s'} <w_s, w_s'> Tr H_{s,s'}`` with ``H_{s,s'} = d2L / dw_s dw_s'`` and L the mean loss over
    the data (Petzka et al. 2021). Their measuring code has ``kappa_max = sum_s ||w_s||^2 lambda_max(H_{s,s})``, and
    their section 3.2 the layer-wise version ``||W||_F^2 Tr H``. A *small* kappa is *flat*.

    The head is measured in closed form, which is exact, if its loss has one. Other layers are measured with random
    probes of the Hessian, or exactly if that takes no more products. All layers share one forward pass of every batch.
    Memory does not grow with the data. Afterwards model, gradients, training mode and random states are as before.
    Several processes (``accelerator``) share the batches and return the same numbers as a single process.

    Cost: a forward pass of the data, and ``2 * probes`` Hessian-vector products for every layer without a closed form
    (``probes`` without ``"layerwise"``). With ``"max_eigenvalue"``, a layer whose rows are not coupled takes d products
    of every batch in their place, and everything is exact. With coupled rows, ``"max_eigenvalue"`` adds 10 to 40
    passes over the data with d products of every batch. Leave it out for wide layers below attention.
    ``"hessian_max_eigenvalue"`` takes 10 to 40 passes with one product. Eigenvalues keep at most 2^26 numbers for each
    layer.

    Args:
        model: the trained model; its parameters do not change.
        dataset_or_dataloader: a data set (map-style, iterable or a list) or a ``DataLoader`` of the model's inputs with
            labels. It may be read several times. A shuffling loader is read in the same order each time.
        layers: ``"auto"`` (representation and head), ``"all"``, or one or several of: ``"head"``,
            ``"representation"``, dotted names, modules.
        measures: what to compute: ``"trace"`` (kappa, always computed), ``"max_eigenvalue"`` (kappa_max),
            ``"layerwise"`` (with Tr H), ``"hessian_max_eigenvalue"`` (of the whole layer; not a relative flatness).
        normalize_features: divide every feature by its standard deviation over the data and multiply the column of W by
            it, as the published measuring code does. The result does not depend on the scale of single features.
            Constant features are left out, like the bias. Takes one more pass.
        estimator: ``"auto"``, ``"hessian"`` or ``"gauss_newton"`` (never negative) for layers without a closed form.
        probes: random directions for every batch; two or more show the error that is due to them.
        relative_error: stop as soon as ``standard_error <= relative_error * |kappa|`` for every layer. The data must be
            in random order.
        weight_decay: alpha, if the measured objective is ``L + alpha ||W||^2``. It adds ``2 alpha m ||W||^2`` to kappa,
            ``2 alpha ||W||^2`` to kappa_max and ``2 alpha d m`` to Tr H. An optimizer's ``weight_decay`` is 2 alpha.
            With ``normalize_features``, W is the normalized weight here, too.
        batch_size: items in a batch, without a loader.
        collate_fn: makes a batch of items, without a loader.
        loss_fn: ``loss_fn(model, batch)`` returns the mean loss of a batch; by default ``model(**batch).loss``. A batch
            is weighted by its number of items, or of labeled tokens. The integer label -100 in ``"labels"`` means no
            label.
        accelerator: an ``accelerate.Accelerator``, to share the work among its processes.
        seed: seed of the probes.
        progress: show a progress bar; by default on a terminal.

    Returns:
        A sequence with one record for each layer, see `LayerFlatness`. It prints as a table.

    Raises:
        ValueError: there is no data or no label; a layer, measure or estimator is unknown; a column is missing; the
            model has no loss; or a label is outside the classes.
        TypeError: a layer's kind is not supported, or the data is neither data set nor loader.
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
    options = checked_options(
        measures=measures,
        normalize_features=normalize_features,
        estimator=estimator,
        probes=probes,
        weight_decay=weight_decay,
        seed=seed,
    )
    probes, weight_decay, seed = options["probes"], options["weight_decay"], options["seed"]
    progress = None if progress is None else require_flag("progress", progress)
    for name, function in (("collate_fn", collate_fn), ("loss_fn", loss_fn)):
        require_function(name, function, "a function")
    if relative_error is not None:
        relative_error = require_number("relative_error", relative_error, 0, 1, open_low=True, open_high=True)
    processes = 1 if accelerator is None else accelerator.num_processes
    rank = 0 if accelerator is None else accelerator.process_index
    batches = Batches(dataset_or_dataloader, batch_size, collate_fn, rank=rank, processes=processes, seed=seed)
    feature_layers = select_layers(unwrap(model), layers)
    run = MeasurementRun(model, batches, feature_layers, loss_fn, accelerator, progress)
    with frozen_for_evaluation(model) as run.model:
        measurements = run.prepare(measures, normalize_features, ROW_PROBES.get(estimator), probes, seed)
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


def checked_layers(layers: Any) -> list[str | nn.Module]:
    """Return the names and modules that an argument ``layers`` has.

    Raises:
        ValueError: it has something else.
    """
    if isinstance(layers, (str, nn.Module)):
        return [layers]
    names_or_modules = list(layers) if isinstance(layers, Collection) and not isinstance(layers, Mapping) else []
    if not names_or_modules or not all(isinstance(layer, (str, nn.Module)) for layer in names_or_modules):
        raise ValueError(f'layers={quote(layers)}: give "auto", "all", a name or module, or a list of these.')
    return names_or_modules


def select_layers(model: nn.Module, layers: str | nn.Module | Sequence[str | nn.Module]) -> list[FeatureLayer]:
    """Return the layers that ``layers`` stands for, each once.

    Raises:
        ValueError: ``layers`` is empty, or a layer is unknown.
        TypeError: the kind of a named layer is not supported.
    """
    if isinstance(layers, str) and layers == ALL:
        selected, skipped = [], []
        for name, module in weighted_layers(model):
            try:
                selected.append(FeatureLayer(model, module))
            except TypeError:
                skipped.append(name)
        if skipped:
            warnings.warn(
                f'layers="all" leaves out layers of kinds that are not supported: {", ".join(skipped)}.', stacklevel=3
            )
    elif isinstance(layers, str) and layers == AUTO:
        selected = [FeatureLayer(model, HEAD)]
        with contextlib.suppress(ValueError, TypeError):  # the model has no other layer, or one of an unsupported kind
            selected.insert(0, FeatureLayer(model, REPRESENTATION))
    else:
        names_or_modules = checked_layers(layers)
        selected = [FeatureLayer(model, layer) for layer in names_or_modules]
    unique = {id(layer.module): layer for layer in selected}
    if not unique:
        raise ValueError('layers is empty: name at least one layer, or use layers="auto".')
    return list(unique.values())


def checked_options(**options: Any) -> dict[str, Any]:
    """Return options of `measure_relative_flatness` as they are used.

    Args:
        **options: ``measures``, ``normalize_features``, ``estimator``, ``probes``, ``weight_decay`` or ``seed``.

    Raises:
        ValueError: one of them is out of range.
        TypeError: there is no such option, or ``normalize_features`` is no truth value.
    """
    unknown = options.keys() - _OPTIONS.keys()
    if unknown:
        raise TypeError(f"there is no argument {', '.join(map(quote, sorted(unknown)))}.")
    return {name: _OPTIONS[name](value) for name, value in options.items()}


def _checked_measures(measures: Any) -> Any:
    if isinstance(measures, str) or not isinstance(measures, Sequence):
        raise ValueError(f"measures={quote(measures)}: give a sequence of names, such as ('trace',).")
    for measure in measures:
        check_choice("measures", measure, MEASURES)
    return measures


def _checked_estimator(estimator: Any) -> Any:
    check_choice("estimator", estimator, (AUTO, *ROW_PROBES))
    return estimator


_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "measures": _checked_measures,
    "normalize_features": lambda value: require_flag("normalize_features", value),
    "estimator": _checked_estimator,
    "probes": lambda value: require_whole("probes", value, 1, MOST_PROBES),
    "weight_decay": lambda value: require_number("weight_decay", value, 0),
    "seed": lambda value: require_whole("seed", value, 0, LARGEST_SEED),
}
