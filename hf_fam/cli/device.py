"""The device that a command runs on."""

from __future__ import annotations

from ..inputs.text import LONGEST_VALUE, first_line, one_line


def choose_device(device: str | None) -> str:
    """Return the device to use: the one that the user named, a GPU if there is one, or the CPU.

    Args:
        device: the value of ``--device``.

    Raises:
        ValueError: the device cannot be used here.
    """
    import torch

    if not device:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except (AssertionError, RuntimeError) as error:  # torch raises either for a missing device or a mistyped name
        raise ValueError(
            f"--device {one_line(device, LONGEST_VALUE)} cannot be used here ({first_line(error)}): give cpu, or leave "
            "it out."
        ) from error
    return device
