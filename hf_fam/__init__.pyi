from .classifier.estimator import FlatLogisticRegression as FlatLogisticRegression
from .flatness.attach import attach as attach
from .flatness.relative_flatness import RelativeFlatness as RelativeFlatness
from .measure.flatness_callback import FlatnessCallback as FlatnessCallback
from .measure.measuring import measure_relative_flatness as measure_relative_flatness
from .train.callback import FAMCallback as FAMCallback
from .train.trainer import FAMMixin as FAMMixin
from .train.trainer import FAMSeq2SeqTrainer as FAMSeq2SeqTrainer
from .train.trainer import FAMTrainer as FAMTrainer
from .train.training_args import FAMArguments as FAMArguments
from .train.training_args import FAMSeq2SeqTrainingArguments as FAMSeq2SeqTrainingArguments
from .train.training_args import FAMTrainingArguments as FAMTrainingArguments

__version__: str
