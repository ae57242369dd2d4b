"""Optional packages: what needs them, and the line that installs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

# Packages whose modules have another name.
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow"}


@contextlib.contextmanager
def optional_packages(purpose: str, extra: str) -> Iterator[None]:
    """Say in one sentence which package an import inside the block lacks.

    Args:
        purpose: what needs the package.
        extra: the extra of hf_fam that installs it.

    Raises:
        ImportError: a package is missing; the message has the line that installs it.

    Examples:
        >>> with optional_packages("the picture", "measure"):
        ...     import package_that_does_not_exist
        Traceback (most recent call last):
            ...
        ImportError: the picture needs package_that_does_not_exist: pip install 'hf-fam[measure]'.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = str(error.name).partition(".")[0]
        raise ImportError(
            f"{purpose} needs {_DISTRIBUTIONS.get(name, name)}: pip install 'hf-fam[{extra}]'.", name=name
        ) from error
