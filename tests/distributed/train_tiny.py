"""Train a tiny BERT with FAMTrainer and write what came out; started by test_two_processes.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, set_seed

from hf_fam import FAMTrainer, FAMTrainingArguments


def main(output: Path, batch: int, accumulation: int) -> None:
    torch.set_num_threads(1)
    set_seed(0)
    config = BertConfig(
        vocab_size=99,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config).double()
    draw = torch.Generator().manual_seed(1)
    data = [
        {"input_ids": torch.randint(3, 99, (7,), generator=draw), "labels": torch.randint(3, (), generator=draw)}
        for _ in range(40)
    ]
    args = FAMTrainingArguments(
        output_dir=str(output.parent / "out"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=5,
        learning_rate=0.1,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        fam_lambda=5.0,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = FAMTrainer(model=model, args=args, train_dataset=data)
    trainer.train()
    if args.process_index == 0:
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        logs = [entry["fam_kappa"] for entry in trainer.state.log_history if "fam_kappa" in entry]
        output.write_text(json.dumps({"processes": args.world_size, "weights": weights.tolist(), "kappa": logs}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
