"""Mean of the squared differences."""

import datasets
import evaluate
from sklearn.metrics import mean_squared_error


class MeanSquaredError(evaluate.Metric):
    """Predictions and references are numbers."""

    def _info(self):
        features = {name: datasets.Value("float64") for name in ("predictions", "references")}
        return evaluate.MetricInfo(description=__doc__, citation="", features=datasets.Features(features))

    def _compute(self, predictions, references):
        return {"mean_squared_error": float(mean_squared_error(references, predictions))}
