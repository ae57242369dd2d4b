"""Compare training methods on a user's own data, over several seeds."""

from .comparing import compare
from .outcome import MethodResult
from .progress import Progress
from .result import ComparisonResult

__all__ = ["ComparisonResult", "MethodResult", "Progress", "compare"]
