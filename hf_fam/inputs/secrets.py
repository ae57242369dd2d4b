"""Access tokens that are neither printed nor saved."""

from __future__ import annotations

from typing import Any


class UnsavedToken(str):
    """An access token that `repr` hides, and that a pickle contains as None.

    The Trainer pickles its arguments into training_args.bin, and pushes the file with the model.

    Examples:
        >>> import pickle
        >>> token = UnsavedToken("hf_secret")
        >>> token, token == "hf_secret", pickle.loads(pickle.dumps(token))
        (<token>, True, None)
    """

    def __repr__(self) -> str:
        return "<token>"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(None), ()

    def __deepcopy__(self, memo: Any) -> UnsavedToken:
        return self  # a copy within the process is used to push


def hide_token(args: Any) -> None:
    """Replace the ``hub_token`` of training arguments, if there is one, by an `UnsavedToken`."""
    token = getattr(args, "hub_token", None)
    if token is not None:
        args.hub_token = UnsavedToken(token)
