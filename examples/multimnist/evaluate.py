"""Accuracy and use of the experts of a MultiMNIST model file, on test images of unseen digits.

python examples/multimnist/evaluate.py edgemoe/data/multimnist-nano.safetensors
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from data import test_images
from model import M3ViT
from safetensors import safe_open

TEST_SEED = 1
TEST_COUNT = 4096


def load(path):
    """The module that a model file holds (docs/model-file.md)."""
    with safe_open(path, "pt") as file:
        module = M3ViT(json.loads(file.metadata()["edgemoe.config"]))
        module.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return module


@torch.no_grad()
def evaluate(module, count=TEST_COUNT, batch=256):
    """Accuracy per task on `count` test images, and the share of every expert (mixture, task, expert)."""
    images, labels = (torch.from_numpy(array) for array in test_images(count, TEST_SEED))
    hits, used = 0, 0
    for part, truth in zip(images.split(batch), labels.split(batch), strict=True):
        logits, routes = module(part.float())
        hits = hits + (torch.stack(logits).argmax(2) == truth.T).sum(1)
        used = used + torch.stack([F.one_hot(c, s.shape[-1]).sum((1, 2, 3)) for s, c in routes])
    return hits / count, used / used.sum(-1, keepdim=True)


def accuracy_text(module, accuracy):
    """One line with the accuracy of every task in percent."""
    tasks = module.config["tasks"]
    return ", ".join(f"{task} {100 * a:.2f} %" for task, a in zip(tasks, accuracy, strict=True))


def main():
    """Parse the command line, print accuracy and use of the experts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=TEST_COUNT)
    args = parser.parse_args()
    module = load(args.model)
    accuracy, used = evaluate(module, args.count)
    print(f"accuracy on {args.count} images: {accuracy_text(module, accuracy)}")
    for block, shares in zip(module.config["moe_blocks"], used, strict=True):
        for task, share in zip(module.config["tasks"], shares, strict=True):
            print(f"block {block}, {task}: tokens per expert {' '.join(f'{100 * s:.1f}' for s in share)} %")


if __name__ == "__main__":
    main()
