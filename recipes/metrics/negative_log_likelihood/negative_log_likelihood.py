"""Mean of -log p(label) in nats, from logits."""

import datasets
import evaluate

from hf_fam.measure import classification_metrics


class NegativeLogLikelihood(evaluate.Metric):
    """Predictions are rows of logits, references numbers of classes."""

    def _info(self):
        features = {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(description=__doc__, citation="", features=datasets.Features(features))

    def _compute(self, predictions, references):
        return {"negative_log_likelihood": classification_metrics.negative_log_likelihood(predictions, references)}
