"""Operations of torch whose third derivative is wrong, without an error.

The gradient of kappa is a third derivative of the tail. The double backward of torch's fused normalizations takes the
saved mean and deviation for constants (pytorch issues 175754 and 186256). That of logcumsumexp is not a number, and
that of the modified Bessel function i1 is wrong.

The tests compare the differentiable operations of torch with finite differences, and find no other.
"""

from __future__ import annotations

from .autograd_graph import TailGraph
from .torch_internals import saved

# Beginnings of the names of backward nodes, and what they are.
NORMALIZATIONS = (
    "NativeLayerNormBackward", "NativeBatchNorm", "BatchNormWithUpdate", "CudnnBatchNormBackward", "FusedRmsNorm",
)  # fmt: skip
OTHERS = ("LogcumsumexpBackward", "SpecialI1Backward")


class WrongThirdDerivativeError(ValueError):
    """torch computes a wrong third derivative of an operation.

    The gradient of kappa would be wrong, too.
    """


def refuse_wrong_third_derivatives(graph: TailGraph) -> None:
    """Refuse operations between z and the loss whose third derivative is wrong.

    A normalization with frozen statistics is an affine map, and right.

    Args:
        graph: what lies between the layer and the loss.

    Raises:
        WrongThirdDerivativeError: there is one; the message names it and says what to do.
    """
    for node in graph.nodes:
        name, uses_running_statistics = node.name(), saved(node, "training", True) is False
        if name.startswith(NORMALIZATIONS) and not uses_running_statistics:
            raise WrongThirdDerivativeError(
                f"{name} lies between the feature layer and the loss, and torch's third derivative of it is wrong "
                "(pytorch issues 175754, 186256). Replace the function by a module such as torch.nn.LayerNorm, choose "
                'a layer above it such as the head, or use estimator="perturbation".'
            )
        if name.startswith(OTHERS):
            raise WrongThirdDerivativeError(
                f"{name} lies between the feature layer and the loss, and torch's third derivative of it is wrong. Use "
                'estimator="perturbation", or another loss. The CoSENT and AnglE losses of sentence-transformers '
                "contain logcumsumexp."
            )
