"""The configurations of the paper's table start: every file, on a small network and look-alike data."""

from __future__ import annotations

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForImageClassification, EfficientNetConfig, EfficientNetForImageClassification

pytest.importorskip("datasets")
pytest.importorskip("pytorch_optimizer")

from huggingface_hub import ModelCard

from hf_fam.recipes.text_classification import main as text_main
from support import look_alikes
from support.families.vision import EFFICIENTNET
from support.launch import ROOT, environment
from support.tiny_recipes import SHORT, encoder

TABLE = ROOT / "recipes" / "paper_table"
sys.path.append(str(TABLE))  # as for a script
networks, released_strength = (importlib.import_module(name) for name in ("networks", "released_strength"))
image_main = runpy.run_path(str(TABLE / "run.py"))["main"]
FAST = ("cifar10/fam.yaml", "svhn/sam.yaml")
FILES = sorted(path.relative_to(TABLE).as_posix() for path in TABLE.glob("*/*.yaml"))
README = (TABLE / "README.md").read_text(encoding="utf-8")
KEPT = {"learning_rate", "adam_epsilon"}  # of SHORT, what the configurations say for themselves


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Smaller ones of the same kinds."""
    folder = tmp_path_factory.mktemp("models")
    networks.CifarResNetConfig(blocks=[1, 1], channels=[4, 8], embedding_size=6).save_pretrained(folder / "resnet18")
    networks.WideResNetConfig(depth=10, width=1, dropout=0.3, embedding_size=6).save_pretrained(folder / "wrn28_10")
    EfficientNetForImageClassification(EfficientNetConfig(**EFFICIENTNET)).save_pretrained(folder / "efficientnet-b7")
    names = {name: str(folder / name) for name in ("resnet18", "wrn28_10", "efficientnet-b7")}
    return {**names, "bert-base-cased": encoder(folder / "bert")}


def read(file: str) -> dict[str, Any]:
    return yaml.safe_load((TABLE / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", [pytest.param(f, marks=[] if f in FAST else pytest.mark.slow) for f in FILES])
def test_starts(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.setattr("hf_fam.recipes.common.data.load_dataset", look_alikes.load_dataset)
    monkeypatch.chdir(ROOT)
    given = read(file)
    short = {k: v for k, v in SHORT.items() if k not in KEPT}
    short |= {"model_name_or_path": models[Path(given["model_name_or_path"]).name], "output_dir": tmp_path}
    short |= {"per_device_train_batch_size": 8, "max_train_samples": 16, "max_eval_samples": 12}
    short |= {"dataloader_num_workers": 0} if "image_processor_name" in given else {"do_predict": False}
    main = text_main if file.startswith("rte") else image_main
    found = main([str(TABLE / file), *(f"--{name}={value}" for name, value in short.items())])
    assert found["eval_nll"] > 0 and found["train_loss"] > 0
    card = ModelCard.load(tmp_path / "README.md")
    assert ("relative-flatness" in card.data.tags) == (given["method"] == "fam")
    if given["method"] == "fam":
        assert "| layer | classifier |" in card.text and "| estimator of κ | closed\\_form |" in card.text


def test_every_row_and_method_is_there() -> None:
    rows = {file.split("/")[0] for file in FILES}
    assert (
        rows
        == {"cifar10", "cifar100", "svhn", "fashion_mnist", "rte"}
        == {*re.findall(r"paper_table/(\w+)/fam", README)}
    )
    assert len(FILES) == 5 * 3 - 1
    for file in FILES:
        given = read(file)
        row, method = file.removesuffix(".yaml").split("/")
        assert given["method"] == method and given["output_dir"] == f"out/paper_table/{row}/{method}"
        assert "Not run here" in (TABLE / file).read_text(encoding="utf-8").splitlines()[0]
        for name in ("model_name_or_path", "image_processor_name"):
            assert not str(given.get(name, "")).startswith("recipes") or (ROOT / given[name]).is_dir()


def test_networks_are_those_of_the_names() -> None:
    """Number of weights, as published: 11.17 million (ten classes), 36.5 million; the embedding comes on top."""
    with torch.device("meta"):
        resnet = networks.CifarResNet(networks.CifarResNetConfig(num_labels=10))
        wide = networks.WideResNet(networks.WideResNetConfig(num_labels=10))
    assert sum(w.numel() for w in resnet.parameters()) == 11_173_962
    biases = sum(
        w.numel() for n, w in wide.named_parameters() if n.endswith("bias") and ("conv" in n or "shortcut" in n)
    )
    first = wide.trunk[0].bias.numel()
    assert sum(w.numel() for w in wide.parameters()) - biases - first == 36_479_194
    for model in (resnet, wide):
        convolutions = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and "shortcut" not in n]
        assert len(convolutions) == (17 if model is resnet else 25)
    with pytest.raises(ValueError, match="depth=27"):
        networks.WideResNetConfig(depth=27)


@pytest.mark.parametrize("kind", [pytest.param("resnet", marks=pytest.mark.slow), "wide"])
def test_saved_networks_load_again(tmp_path: Path, kind: str) -> None:
    """Here by their class, and where hf_fam's recipes are not, by the code that is saved with them."""
    networks.register()
    if kind == "resnet":
        config: Any = networks.CifarResNetConfig(blocks=[1, 1], channels=[4, 8], embedding_size=5)
    else:
        config = networks.WideResNetConfig(depth=10, width=1, embedding_size=5)
    model = AutoModelForImageClassification.from_config(config).eval()
    x = torch.randn(2, 3, 32, 32)
    before = model(x).logits
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(again(x).logits, before)
    torch.save((x, before), tmp_path / "expected.pt")
    code = (
        "import sys, torch; from transformers import AutoModelForImageClassification as A\n"
        "m = A.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "x, y = torch.load(sys.argv[1] + '/expected.pt'); assert torch.equal(m(x).logits, y)\n"
    )
    elsewhere = {**environment(), "PYTHONPATH": "", "HF_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=elsewhere, check=True, timeout=120, cwd=tmp_path)


def test_released_regularizer() -> None:
    """Against a literal reading of the script: slices of the full Hessian, their traces, products of weights."""
    weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    phi = torch.randn(7, 5, dtype=torch.float64)
    labels = torch.randint(3, (7,))
    hessian = torch.func.hessian(lambda w: torch.nn.functional.cross_entropy(phi @ w.T, labels))(weight.detach())
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            expected = expected + weight[i] @ weight[j] * hessian[:, j, i, :].trace() / 5
    torch.testing.assert_close(released_strength.released(weight, phi), expected)
    blocks = torch.stack([torch.stack([hessian[s, :, t, :].trace() for t in range(3)]) for s in range(3)])
    kappa = (weight @ weight.T * blocks).sum()
    torch.testing.assert_close(released_strength.relative_flatness(weight, phi), kappa)
    grads = [torch.autograd.grad(f, weight)[0] for f in (expected, released_strength.released(weight, phi))]
    torch.testing.assert_close(*grads)


def test_strengths_are_what_the_script_says() -> None:
    begin, end = (f"<!-- released_strength.py: {word} -->\n" for word in ("begin", "end"))
    table = released_strength.table()
    assert README.split(begin)[1].split(end)[0].strip() == table
    for line in table.splitlines()[2:]:
        row, script, _, _, strength = (cell.strip() for cell in line.strip("|").split("|"))
        file = {
            "CIFAR-10": "cifar10",
            "CIFAR-100": "cifar100",
            "SVHN": "svhn",
            "FashionMNIST": "fashion_mnist",
            "RTE": "rte",
        }
        given = read(f"{file[row.split(',')[0]]}/fam.yaml")
        assert float(given["fam_lambda"]) == float(strength), (row, script)


def test_a_rate_that_falls_in_steps(tmp_path: Path) -> None:
    from hf_fam.recipes.common.arguments import MethodArguments
    from hf_fam.recipes.common.methods import make_trainer
    from support.tiny import arguments, classified, tiny_bert

    args = arguments(tmp_path, max_steps=10, learning_rate=1.0, per_device_train_batch_size=4)
    method = MethodArguments(method="plain", lr_milestones=[0.3, 0.6, 0.8], lr_gamma=0.2)
    trainer = make_trainer(method, args, model=tiny_bert(), train_dataset=classified(40))
    trainer.train()
    rates = [logs["learning_rate"] for logs in trainer.state.log_history if "learning_rate" in logs]
    assert rates == pytest.approx([1.0] * 3 + [0.2] * 3 + [0.04] * 2 + [0.008] * 2)
    with pytest.raises(ValueError, match="lr_milestones=30.0: give a number above 0 and below 1"):
        MethodArguments(lr_milestones=[30.0])


def test_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="root of the repository"):
        image_main([str(TABLE / "cifar10" / "fam.yaml"), "--use_cpu"])
