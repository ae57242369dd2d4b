"""Pearson's correlation of predictions and references; NaN where one of them is constant."""

import datasets
import evaluate
from scipy.stats import pearsonr


class Pearson(evaluate.Metric):
    """Predictions and references are numbers."""

    def _info(self):
        features = {name: datasets.Value("float64") for name in ("predictions", "references")}
        return evaluate.MetricInfo(description=__doc__, citation="", features=datasets.Features(features))

    def _compute(self, predictions, references):
        return {"pearson": float(pearsonr(references, predictions)[0])}
