"""Nothing in the tests reaches for the Hub."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

# The networks are tiny, and threads that wait for each other on a busy machine cost far more than they give.
torch.set_num_threads(1)
