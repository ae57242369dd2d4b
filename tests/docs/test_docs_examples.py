"""What README.md and docs/ tell people to type works.

All ```python blocks of a file run one after the other in one namespace, in an empty folder. It already contains
``model`` (a tiny random BERT) and ``new_model``, which makes one, ``train``, ``test`` (also as ``train_dataset``,
``eval_dataset``) and ``collator``; for other libraries' trainers ``language_model``, ``tokenizer`` and ``sentences``,
and ``embedder`` with ``pairs``.
Commands are checked against the parser of ``hf-fam`` and the targets of the Makefile.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, default_data_collator

from hf_fam.cli import main as cli
from hf_fam.flatness.estimators import estimator_names, unregister
from support.languages import pairs, sentences, tiny_embedder, tiny_tokenizer
from support.tiny import classified, tiny_bert, tiny_llama

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FILES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if "generated" not in page.parts)]
FILES.append(DOCS / "generated" / "troubleshooting.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def store_text_model(folder: Path) -> None:
    tiny_tokenizer().save_pretrained(folder)
    tiny_bert().base_model.save_pretrained(folder)


def store_image_model(folder: Path) -> None:
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(**size, patch_size=56, num_labels=1000)).save_pretrained(folder)


# Folders of these names have a tiny model of the same kind, so that nothing is downloaded.
HUB_MODELS = {
    "sentence-transformers/all-MiniLM-L6-v2": store_text_model,
    "facebook/deit-tiny-patch16-224": store_image_model,
}


def blocks(file: Path, *languages: str) -> list[tuple[int, str]]:
    """Line number and text of the file's blocks in some languages."""
    text = file.read_text(encoding="utf-8")
    return [
        (text[: found.start(2)].count("\n"), found.group(2))
        for found in BLOCK.finditer(text)
        if found.group(1) in languages
    ]


def namespace(path: Path, code: str) -> dict[str, Any]:
    train, test = classified(24), classified(12)
    others: dict[str, Any] = {}
    if "trl" in code or "sentence_transformers" in code:
        datasets = pytest.importorskip("datasets")
        pytest.importorskip("sentence_transformers")
        if "trl" in code:
            pytest.importorskip("trl")
        others = {
            "language_model": tiny_llama(pad_token_id=0),
            "tokenizer": tiny_tokenizer(),
            "sentences": datasets.Dataset.from_dict(sentences()),
            "embedder": tiny_embedder(path),
            "pairs": datasets.Dataset.from_dict(pairs()),
        }
    return {
        "model": tiny_bert(),
        "new_model": tiny_bert,
        "train": train,
        "test": test,
        "train_dataset": train,
        "eval_dataset": test,
        "collator": default_data_collator,
        **others,
    }


@pytest.mark.parametrize(
    "file", [f for f in FILES if blocks(f, "python")], ids=lambda file: str(file.relative_to(ROOT))
)
def test_python_blocks_run(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name, store in HUB_MODELS.items():
        if name in file.read_text(encoding="utf-8"):
            store(tmp_path / name)
    names = namespace(tmp_path, "".join(code for _, code in blocks(file, "python")))
    known = set(estimator_names())
    try:
        for line, code in blocks(file, "python"):
            # Empty lines before it, so that a traceback names the line of the file.
            exec(compile("\n" * line + code, str(file), "exec"), names)
    finally:
        for name in set(estimator_names()) - known:
            unregister(name)


def commands() -> list[str]:
    texts = [text.replace("\\\n", " ") for file in FILES for _, text in blocks(file, "bash")]
    lines = [line for text in texts for line in text.splitlines()]
    return sorted({line.split("#")[0].strip() for line in lines} - {""})


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("hf-fam")])
def test_hf_fam_commands_exist(command: str) -> None:
    cli.make_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    for target in command.split()[1:]:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
