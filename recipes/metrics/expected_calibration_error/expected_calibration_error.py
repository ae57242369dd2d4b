"""How far confidence is from accuracy (Guo et al. 2017, arXiv 1706.04599), from logits."""

import datasets
import evaluate

from hf_fam.measure import classification_metrics


class ExpectedCalibrationError(evaluate.Metric):
    """Predictions are rows of logits, references numbers of classes."""

    def _info(self):
        features = {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(description=__doc__, citation="", features=datasets.Features(features))

    def _compute(self, predictions, references, bins=15):
        return {
            "expected_calibration_error": classification_metrics.expected_calibration_error(
                predictions, references, bins
            )
        }
