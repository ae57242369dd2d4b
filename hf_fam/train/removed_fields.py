"""Arguments that earlier versions of hf_fam had."""

from __future__ import annotations

from collections.abc import Iterable

# Removed fields, and what to do instead.
_REMOVED = {
    "fam_max_grad_ratio": "lower fam_lambda, or let it rise with fam_warmup_steps",
    "fam_every_n_steps": "remove it, the term acts in every step",
    "fam_token_fraction": 'remove it, fam_estimator="row_probes" is cheap for large vocabularies',
    "fam_gradient": 'remove it, or use RelativeFlatness(gradient="weights_only") for comparisons',
}


def refuse_removed_fields(names: Iterable[str]) -> None:
    """Refuse arguments that earlier versions of hf_fam had.

    Args:
        names: names of the arguments.

    Raises:
        ValueError: an argument was removed; the message says what to do.
    """
    for name in names:
        if name in _REMOVED:
            raise ValueError(f"{name} is not an argument of hf_fam: {_REMOVED[name]}.")
