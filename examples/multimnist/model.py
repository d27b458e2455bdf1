"""A small M3ViT in PyTorch whose parameter names are those of the model file.

The vision transformer has a mixture of experts in its odd blocks, one gate per task in every
mixture, and one class-token head per task.  Task is the leading axis of the activations; its
size is 1 up to the first gate, because until there all tasks compute the same.
"""

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "name": "multimnist-nano",
    "channels": 1,
    "height": 36,
    "width": 36,
    "patch": [6, 6],
    "dim": 48,
    "depth": 4,
    "heads": 3,
    "mlp_dim": 192,
    "experts": 8,
    "expert_dim": 96,
    "top_k": 2,
    "moe_blocks": [1, 3],
    "tasks": ["left", "right"],
    "classes": [10, 10],
    "norm_eps": 1e-6,
    "final_norm": True,
    "image_mean": [0.15625],
    "image_std": [0.3125],
}


def _normal(*shape, std):
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=std, a=-2 * std, b=2 * std))


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of one image, scale 1/sqrt(head_dim)."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        """Tokens (tasks, images, tokens, dim) to the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        """Tokens (..., dim) to the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class Stack(nn.Module):
    """A weight, and perhaps a bias, with a leading axis of experts or tasks."""

    def __init__(self, count, outputs, inputs, std, bias=True):
        super().__init__()
        self.weight = _normal(count, outputs, inputs, std=std)
        if bias:
            self.bias = nn.Parameter(torch.zeros(count, outputs))


class Moe(nn.Module):
    """Mixture of experts: y = sum over the top_k experts e of softmax(gate x)_e * expert_e(x).

    The softmax runs over all experts and the chosen weights are not renormalised.
    """

    def __init__(self, dim, hidden, experts, top_k, tasks):
        super().__init__()
        self.top_k = top_k
        self.gate = Stack(tasks, experts, dim, std=0.1, bias=False)
        self.fc1 = Stack(experts, hidden, dim, std=dim**-0.5)
        self.fc2 = Stack(experts, dim, hidden, std=hidden**-0.5)

    def forward(self, x):
        """Tokens (1 or tasks, images, tokens, dim) to (tasks, ...), gate scores and chosen experts."""
        x = x.expand(len(self.gate.weight), *x.shape[1:])
        scores = torch.einsum("tbnd,ted->tbne", x, self.gate.weight).softmax(-1)
        weights, chosen = scores.topk(self.top_k, dim=-1)
        flat = x.flatten(0, 2)
        y = torch.zeros_like(flat)
        flat_weights, flat_chosen = weights.flatten(0, 2), chosen.flatten(0, 2)
        for e in range(len(self.fc1.weight)):
            token, rank = (flat_chosen == e).nonzero(as_tuple=True)
            hidden = F.gelu(F.linear(flat[token], self.fc1.weight[e], self.fc1.bias[e]))
            output = F.linear(hidden, self.fc2.weight[e], self.fc2.bias[e])
            y = y.index_add(0, token, output * flat_weights[token, rank, None])
        return y.view(x.shape), scores, chosen


class Block(nn.Module):
    """Pre-norm transformer block with a dense MLP or a mixture of experts."""

    def __init__(self, config, index):
        super().__init__()
        c = config
        self.norm1 = nn.LayerNorm(c["dim"], c["norm_eps"])
        self.attn = Attention(c["dim"], c["heads"])
        self.norm2 = nn.LayerNorm(c["dim"], c["norm_eps"])
        if index in c["moe_blocks"]:
            self.moe = Moe(c["dim"], c["expert_dim"], c["experts"], c["top_k"], len(c["tasks"]))
        else:
            self.mlp = Mlp(c["dim"], c["mlp_dim"])

    def forward(self, x, routes):
        """Tokens to tokens; a mixture appends its (scores, chosen) to `routes`."""
        x = x + self.attn(self.norm1(x))
        if hasattr(self, "mlp"):
            return x + self.mlp(self.norm2(x))
        y, scores, chosen = self.moe(self.norm2(x))
        routes.append((scores, chosen))
        return x + y


class M3ViT(nn.Module):
    """Multi-task mixture-of-experts vision transformer with one linear head per task."""

    def __init__(self, config):
        super().__init__()
        self.config = c = config
        tokens = 1 + (c["height"] // c["patch"][0]) * (c["width"] // c["patch"][1])
        self.patch_embed = nn.Conv2d(c["channels"], c["dim"], c["patch"], c["patch"])
        self.pos_embed = _normal(tokens, c["dim"], std=0.1)
        self.blocks = nn.ModuleList(Block(c, i) for i in range(c["depth"]))
        self.norm = nn.LayerNorm(c["dim"], c["norm_eps"])
        self.heads = nn.ModuleList(nn.Linear(c["dim"], classes) for classes in c["classes"])

    def forward(self, images):
        """Images (n, channels, height, width), float of 0..255, to logits and routes.

        Logits are one (n, classes) per task; routes are (scores, chosen) of every mixture.
        """
        mean, std = (torch.tensor(self.config[key])[:, None, None] for key in ("image_mean", "image_std"))
        patches = self.patch_embed((images / 256 - mean) / std).flatten(2).transpose(1, 2)
        start = torch.zeros(len(images), 1, patches.shape[-1])
        x = torch.cat([start, patches], 1)[None] + self.pos_embed
        routes = []
        for block in self.blocks:
            x = block(x, routes)
        class_token = self.norm(x[:, :, 0])
        return [head(token) for head, token in zip(self.heads, class_token, strict=True)], routes
