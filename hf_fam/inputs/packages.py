"""Optional packages: what needs them, and the line that installs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec

# Packages whose modules have another name.
_DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "pytorch_optimizer": "pytorch-optimizer",
}


class MissingPackageError(ImportError):
    """An optional package is not installed; the message has the line that installs it.

    Args:
        purpose: what needs the package.
        extra: the extra of hf_fam that installs it.
        *modules: modules of the packages that are missing.
    """

    def __init__(self, purpose: str, extra: str, *modules: str) -> None:
        names = ", ".join(_DISTRIBUTIONS.get(module, module) for module in modules)
        super().__init__(f"{purpose} needs {names}: pip install 'hf-fam[{extra}]'.", name=modules[0])


@contextlib.contextmanager
def optional_packages(purpose: str, extra: str) -> Iterator[None]:
    """Say in one sentence which package an import inside the block lacks.

    Args:
        purpose: what needs the package.
        extra: the extra of hf_fam that installs it.

    Raises:
        MissingPackageError: a package is missing.

    Examples:
        >>> with optional_packages("the picture", "measure"):
        ...     import package_that_does_not_exist
        Traceback (most recent call last):
            ...
        hf_fam.inputs.packages.MissingPackageError: the picture needs package_that_does_not_exist: pip install
        'hf-fam[measure]'.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(purpose, extra, str(error.name).partition(".")[0]) from error


def require_packages(purpose: str, extra: str, *modules: str) -> None:
    """Refuse to begin something without packages that it imports later.

    Args:
        purpose: what needs the packages.
        extra: the extra of hf_fam that installs them.
        *modules: modules of the packages.

    Raises:
        MissingPackageError: names all packages that are missing.

    Examples:
        >>> require_packages("hf-fam sing", "recipes", "yaml", "voice_that_does_not_exist")
        Traceback (most recent call last):
            ...
        hf_fam.inputs.packages.MissingPackageError: hf-fam sing needs voice_that_does_not_exist: pip install
        'hf-fam[recipes]'.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingPackageError(purpose, extra, *missing)
