"""A linear classifier on fixed features, with smoothed relative flatness as its penalty.

Needs scikit-learn and scipy (``pip install "hf-fam[classifier]"``). See docs/flat-logistic-regression.md.
"""

from __future__ import annotations

try:
    import scipy.optimize  # noqa: F401
    from sklearn.utils.validation import validate_data  # noqa: F401
except ImportError as error:
    raise ImportError(
        "FlatLogisticRegression needs scikit-learn 1.6 or newer, and scipy: pip install 'hf-fam[classifier]'."
    ) from error
