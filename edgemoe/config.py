"""`ModelConfig`, `HardwareConfig`, and the one place where the two are checked against each other."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgemoe.errors import BadInput, DoesNotFit
from edgemoe.numeric import ceil_div, is_power_of_two, round_up

PROFILES = {"w8a16": 8, "w16a16": 16}
"""Bits of operand B by profile; operand A always has 16."""

A_BITS = 16
MAX_ACC_BITS = 46
"""Products of the accumulator with a 16-bit multiplier must stay within the golden model's int64."""


def _from_dict(cls, values: dict[str, Any], source: str):
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            raise BadInput(f"{source}: unknown key {key!r}; known keys are {', '.join(sorted(known))}")
    missing = [n for n, f in known.items() if n not in values and f.default is f.default_factory]
    if missing:
        raise BadInput(f"{source}: missing key {missing[0]!r}")
    for key, value in values.items():
        kind = known[key].type
        wanted = {"int": int, "str": str, "bool": bool, "float": (int, float)}.get(str(kind))
        if wanted and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
            raise BadInput(f"{source}: {key} must be {kind}, found {value!r}")
        if str(kind).startswith("tuple"):
            if not isinstance(value, (list, tuple)):
                raise BadInput(f"{source}: {key} must be a list, found {value!r}")
            values = {**values, key: tuple(value)}
    return cls(**values)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a multi-task mixture-of-experts vision transformer (docs/model-file.md)."""

    name: str
    channels: int
    height: int
    width: int
    patch: tuple[int, ...]
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    tasks: tuple[str, ...]
    experts: int = 0
    expert_dim: int = 0
    top_k: int = 0
    moe_blocks: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    norm_eps: float = 1e-6
    final_norm: bool = False
    image_mean: tuple[float, ...] = ()
    image_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        def rule(holds: bool, message: str) -> None:
            if not holds:
                raise BadInput(f"model {self.name}: {message}")

        rule(len(self.patch) == 2, f"patch must be [height, width], found {list(self.patch)}")
        for key in ("channels", "height", "width", "dim", "depth", "heads"):
            rule(getattr(self, key) >= 1, f"{key} must be at least 1, found {getattr(self, key)}")
        rule(min(self.patch) >= 1, f"patch must be at least 1x1, found {list(self.patch)}")
        rule(
            self.height % self.patch[0] == 0 and self.width % self.patch[1] == 0,
            f"image {self.height}x{self.width} must be a multiple of patch {self.patch[0]}x{self.patch[1]}",
        )
        rule(self.dim % self.heads == 0, f"dim {self.dim} must be divisible by heads {self.heads}")
        rule(len(self.tasks) >= 1, "at least one task is needed")
        rule(
            all(0 <= b < self.depth for b in self.moe_blocks),
            f"moe_blocks {list(self.moe_blocks)} outside 0..{self.depth - 1}",
        )
        if self.moe_blocks:
            rule(self.experts >= 1, f"experts must be at least 1, found {self.experts}")
            rule(self.expert_dim >= 1, f"expert_dim must be at least 1, found {self.expert_dim}")
            rule(
                1 <= self.top_k <= self.experts,
                f"top_k must be 1..experts, found top_k {self.top_k} with {self.experts} experts",
            )
        if len(self.moe_blocks) < self.depth:
            rule(self.mlp_dim >= 1, f"mlp_dim must be at least 1, found {self.mlp_dim}")
        rule(
            len(self.classes) in (0, len(self.tasks)),
            f"classes must name one number for each of the {len(self.tasks)} tasks, found {len(self.classes)}",
        )
        rule(self.norm_eps > 0, f"norm_eps must be positive, found {self.norm_eps}")

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "model") -> ModelConfig:
        """Build from the JSON object of a model file; unknown or missing keys raise `BadInput`."""
        return _from_dict(cls, values, source)

    def to_json(self) -> str:
        """The JSON text that a model file carries."""
        return json.dumps(asdict(self))

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row."""
        return self.height // self.patch[0], self.width // self.patch[1]

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.grid[0] * self.grid[1] + 1

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.heads

    @property
    def has_heads(self) -> bool:
        """Whether any task has a classification head."""
        return any(self.classes)

    def macs(self) -> dict[str, int]:
        """Useful multiply-accumulates per image and task, by kind; padding is not counted."""
        t, d = self.tokens, self.dim
        moe, dense = len(self.moe_blocks), self.depth - len(self.moe_blocks)
        return {
            "patch embedding": (t - 1) * d * self.channels * self.patch[0] * self.patch[1],
            "q, k, v, proj": self.depth * 4 * t * d * d,
            "QK": self.depth * t * t * d,
            "AV": self.depth * t * t * d,
            "dense MLP": dense * 2 * t * d * self.mlp_dim,
            "experts": moe * self.top_k * 2 * t * d * self.expert_dim,
            "gates": moe * t * d * self.experts,
            "head": d * max(self.classes, default=0),
        }


@dataclass(frozen=True)
class HardwareConfig:
    """An accelerator: lanes, ports and capacities. Derived sizes are properties.

    Capacities are in values, not words: ``tokens`` (with class token), ``dim`` (channels of a token,
    heads padded to the lanes), ``row`` (longest row of operand B: patch, hidden, tokens, twice dim for
    a gate on 8-bit B), ``hidden`` (channels of one expert or slice of a dense MLP), ``image`` (pixels
    of all channels, patch rows padded to the lanes). ``norm_lanes``, ``post_lanes`` and ``gate_lanes`` are the values
    per cycle of layer norm, of what follows the array, and of the router.
    """

    name: str
    in_lanes: int
    out_lanes: int
    port_bytes: int
    tokens: int
    dim: int
    row: int
    hidden: int
    image: int
    heads: int = 16
    experts: int = 64
    top_k: int = 8
    slot_sets: int = 2
    profile: str = "w8a16"
    norm_lanes: int = 0
    post_lanes: int = 0
    gate_lanes: int = 0
    acc_bits: int = 0
    prefetch_bytes: int = 8192
    memory_bytes: int = 1 << 26

    def __post_init__(self) -> None:
        def rule(holds: bool, message: str) -> None:
            if not holds:
                raise BadInput(f"hardware {self.name}: {message}")

        for key in ("in_lanes", "out_lanes", "port_bytes", "prefetch_bytes", "memory_bytes"):
            rule(
                is_power_of_two(getattr(self, key)),
                f"{key} must be a power of two, found {getattr(self, key)}",
            )
        for key in ("tokens", "dim", "row", "hidden", "image", "heads", "experts", "top_k"):
            rule(getattr(self, key) >= 1, f"{key} must be at least 1, found {getattr(self, key)}")
        rule(
            self.profile in PROFILES, f"profile must be one of {', '.join(PROFILES)}, found {self.profile!r}"
        )
        rule(
            self.in_lanes * self.b_bits >= 64,
            f"in_lanes must be at least {64 // self.b_bits} with {self.b_bits}-bit weights, found {self.in_lanes}",
        )
        rule(1 <= self.slot_sets <= 14, f"slot_sets must be 1..14, found {self.slot_sets}")
        rule(self.port_bytes >= 2, f"port_bytes must be at least 2, found {self.port_bytes}")
        if not self.norm_lanes:
            object.__setattr__(self, "norm_lanes", max(1, self.in_lanes // 2))
        if not self.post_lanes:
            lanes = max(1, self.in_lanes * self.out_lanes // 64)
            object.__setattr__(self, "post_lanes", min(lanes, self.in_lanes, self.out_lanes))
        if not self.gate_lanes:
            object.__setattr__(self, "gate_lanes", self.in_lanes)
        for key in ("norm_lanes", "post_lanes", "gate_lanes"):
            rule(
                is_power_of_two(getattr(self, key)),
                f"{key} must be a power of two, found {getattr(self, key)}",
            )
        for key in ("norm_lanes", "gate_lanes"):
            rule(
                getattr(self, key) <= self.in_lanes,
                f"{key} {getattr(self, key)} must not exceed in_lanes {self.in_lanes}",
            )
        rule(
            self.post_lanes <= min(self.in_lanes, self.out_lanes),
            f"post_lanes {self.post_lanes} must not exceed in_lanes {self.in_lanes} or out_lanes {self.out_lanes}",
        )
        needed = self.needed_acc_bits(self.row)
        if not self.acc_bits:
            object.__setattr__(self, "acc_bits", min(max(needed + 2, 32 + self.b_bits), MAX_ACC_BITS))
        rule(
            self.acc_bits >= needed,
            f"acc_bits is {self.acc_bits}; summing {self.row} products of {A_BITS}x{self.b_bits} bits "
            f"and a bias needs {needed}",
        )
        rule(self.acc_bits <= MAX_ACC_BITS, f"acc_bits must be at most {MAX_ACC_BITS}, found {self.acc_bits}")
        for key, limit in (("tokens", 1024), ("dim", 4095), ("row", 4095 * self.in_lanes), ("top_k", 16)):
            rule(getattr(self, key) <= limit, f"{key} must be at most {limit}, found {getattr(self, key)}")
        rule(self.experts <= 128, f"experts must be at most 128, found {self.experts}")
        rule(self.heads <= 63, f"heads must be at most 63, found {self.heads}")
        rule(
            self.activation_end < 1 << 16,
            f"activation memory of {self.activation_end} words exceeds 65535; "
            "raise in_lanes or lower tokens, dim, hidden or image",
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "hardware") -> HardwareConfig:
        """Build from the table of a TOML file; unknown or missing keys raise `BadInput`."""
        return _from_dict(cls, values, source)

    def needed_acc_bits(self, row: int) -> int:
        """Bits that hold ``row`` products of full range and one bit for the bias."""
        return A_BITS + self.b_bits - 1 + (row - 1).bit_length() + 1

    # -- derived ------------------------------------------------------------------------------

    @property
    def b_bits(self) -> int:
        """Bits of operand B."""
        return PROFILES[self.profile]

    @property
    def macs(self) -> int:
        """Multipliers of the shared array: multiply-accumulates per cycle at best."""
        return self.in_lanes * self.out_lanes

    @property
    def slot_bytes(self) -> int:
        """Bytes of one word of a slot: in_lanes operands B."""
        return self.in_lanes * self.b_bits // 8

    @property
    def fill_rows(self) -> int:
        """Rows that the weight stream interleaves word by word, filled into as many slots at once."""
        return 1 if self.slot_sets == 1 else min(self.out_lanes, max(1, self.port_bytes // self.slot_bytes))

    @property
    def fill_bytes(self) -> int:
        """Bytes of one word of the weight stream."""
        return self.slot_bytes * self.fill_rows

    @property
    def slot_words(self) -> int:
        """Words of one row in a slot (capacity)."""
        return ceil_div(self.row, self.in_lanes)

    @property
    def token_words(self) -> int:
        """Words of one row of scores (capacity): the keys of a query."""
        return ceil_div(max(self.tokens, self.experts), self.in_lanes)

    @property
    def pages(self) -> int:
        """Pages of the activation memory: x, norm, q, k and v (memmap.Page)."""
        return 5

    @property
    def page_words(self) -> int:
        """Words of every page but the last, of in_lanes activations.

        A row of x, norm, q, k or scores for every token; hidden spans the last three pages, an image the last four.
        """
        lanes, last = self.in_lanes, self.last_page_words
        return max(
            self.tokens * ceil_div(self.dim, lanes),
            self.tokens * self.token_words,
            ceil_div(self.tokens * ceil_div(self.hidden, lanes) - last, 2),
            ceil_div(ceil_div(self.image, lanes) - last, 3),
        )

    @property
    def last_page_words(self) -> int:
        """Words of the last page, which holds v transposed: a row of all tokens for every channel."""
        return round_up(self.dim, self.in_lanes) * ceil_div(self.tokens, self.in_lanes)

    @property
    def activation_words(self) -> int:
        """Words of the activation memory."""
        return (self.pages - 1) * self.page_words + self.last_page_words

    @property
    def first_word(self) -> int:
        """Address of the first page: any would do, but here the pages touch few words of a fourth quarter of their range.

        It matters to a page of little more than three quarters (`edgemoe.core.activation`).
        """
        quarter = max(1, (1 << (self.page_words - 1).bit_length()) // 4)
        over = self.page_words - 3 * quarter
        shared = self.pages - 1
        return (quarter - over * (shared // 2)) % quarter if 0 < over * shared < quarter else 0

    def page_base(self, page: int) -> int:
        """Address of the first word of ``page`` of the activation memory."""
        return self.first_word + page * self.page_words

    @property
    def activation_end(self) -> int:
        """Addresses of the activation memory: one more than the last."""
        return self.first_word + self.activation_words

    @property
    def gate_words(self) -> int:
        """Words of one row of gate scores (capacity)."""
        return ceil_div(self.experts, self.in_lanes)

    @property
    def memory_words(self) -> int:
        """External memory in words of the port."""
        return self.memory_bytes // self.port_bytes

    def head_dim(self, model: ModelConfig) -> int:
        """Channels of a head on chip: padded to whole words."""
        return round_up(model.head_dim, self.in_lanes)

    def segment(self, model: ModelConfig) -> int:
        """Lanes that one pixel row of a patch takes: a multiple or a divisor of in_lanes."""
        width = model.patch[1]
        if width >= self.in_lanes:
            return round_up(width, self.in_lanes)
        return 1 << (width - 1).bit_length()

    def patch_values(self, model: ModelConfig) -> int:
        """Values of one patch on chip, padding included."""
        return round_up(model.channels * model.patch[0] * self.segment(model), self.in_lanes)

    def hidden_slices(self, model: ModelConfig, block: int) -> tuple[int, int]:
        """``(experts, channels)`` as which the MLP of a block runs; a dense MLP is cut to fit ``hidden``."""
        if block in model.moe_blocks:
            return model.experts, round_up(model.expert_dim, self.in_lanes)
        slices = ceil_div(round_up(model.mlp_dim, self.in_lanes), self.hidden)
        while model.mlp_dim % slices and slices < model.mlp_dim // self.in_lanes:
            slices += 1
        return slices, round_up(ceil_div(model.mlp_dim, slices), self.in_lanes)


def needs(model: ModelConfig, hardware: HardwareConfig) -> dict[str, int]:
    """Capacities that ``model`` needs on hardware with these lanes, by key of `HardwareConfig`."""
    lanes = hardware.in_lanes
    padded = max(round_up(model.dim, lanes), model.heads * hardware.head_dim(model))
    hidden = max([hardware.hidden_slices(model, b)[1] for b in range(model.depth)])
    gate_rows = 2 if hardware.b_bits == 8 else 1
    return {
        "tokens": model.tokens,
        "dim": padded,
        "hidden": hidden,
        "row": max(
            padded * (gate_rows if model.moe_blocks else 1),
            hidden,
            hardware.patch_values(model),
            model.tokens,
        ),
        "image": (model.tokens - 1) * hardware.patch_values(model),
        "heads": model.heads,
        "experts": max(model.experts, 1),
        "top_k": max(model.top_k, 1),
    }


def check(model: ModelConfig, hardware: HardwareConfig) -> None:
    """Raise `DoesNotFit`, naming both sizes and the remedy, if ``model`` exceeds ``hardware``."""
    for key, value in needs(model, hardware).items():
        have = getattr(hardware, key)
        if value > have:
            needed, there = "", ""
            if key in ("dim", "hidden"):
                needed = f" ({_row_bytes(value, model.tokens)} B of activation memory)"
                there = f" ({_row_bytes(have, hardware.tokens)} B)"
            if key == "image":
                needed, there = f" ({2 * value} B of activation memory)", f" ({2 * have} B)"
            if key == "row":
                each = hardware.out_lanes * hardware.b_bits // 8
                needed, there = f" ({each * value} B of slots in each set)", f" ({each * have} B)"
            raise DoesNotFit(
                f"model {model.name} needs {key} {value}{needed}, hardware {hardware.name} has {have}{there}; "
                f"raise {key} in the hardware file or use --fit"
            )


def _row_bytes(channels: int, tokens: int) -> int:
    """Bytes of 16-bit rows of all tokens in the activation memory."""
    return A_BITS // 8 * channels * tokens


def fit(hardware: HardwareConfig, model: ModelConfig) -> HardwareConfig:
    """``hardware`` with capacities raised to what ``model`` needs; lanes and ports stay."""
    grown = {k: max(v, getattr(hardware, k)) for k, v in needs(model, hardware).items()}
    return replace(hardware, acc_bits=0, **grown)


# -- named hardware -----------------------------------------------------------------------------


def _m3vit(name: str, in_lanes: int, out_lanes: int, port: int, **more: int) -> HardwareConfig:
    shapes = dict(
        tokens=129,
        dim=192,
        row=768,
        hidden=384,
        image=128 * 768,
        heads=3,
        experts=16,
        top_k=2,
        norm_lanes=in_lanes,
    )
    return HardwareConfig(
        name=name, in_lanes=in_lanes, out_lanes=out_lanes, port_bytes=port, **(shapes | more)
    )


NAMED: dict[str, HardwareConfig] = {
    hw.name: hw
    for hw in (
        HardwareConfig(
            name="nano", in_lanes=8, out_lanes=8, port_bytes=8, tokens=64, dim=64, row=192, hidden=192,
            image=2304, heads=8, experts=16, top_k=4, post_lanes=4, norm_lanes=8, memory_bytes=1 << 22,
        ),
        _m3vit("m3vit-64", 8, 8, 32),
        _m3vit("m3vit-128", 16, 8, 32),
        # experts with few tokens are bound by their weights from here on: slots for many blocks ahead
        _m3vit("m3vit-256", 16, 16, 32, slot_sets=14),
        _m3vit("m3vit-512", 32, 16, 64, slot_sets=14),
        _m3vit("m3vit-1024", 32, 32, 128, slot_sets=14),
        _m3vit("ulx3s-85f", 8, 16, 16, norm_lanes=2, gate_lanes=2, memory_bytes=1 << 25),
        _m3vit("ulx3s-85f-64", 8, 8, 16, norm_lanes=2, gate_lanes=2, memory_bytes=1 << 25),
        HardwareConfig(
            name="ulx3s-25f", in_lanes=4, out_lanes=2, port_bytes=8, tokens=37, dim=48, row=96, hidden=96,
            image=1728, heads=3, experts=8, top_k=2, profile="w16a16", post_lanes=1, norm_lanes=1,
            gate_lanes=1, prefetch_bytes=4096, memory_bytes=1 << 25,
        ),
    )
}  # fmt: skip


def load_hardware(name_or_path: str) -> HardwareConfig:
    """A named configuration, or a TOML file with the keys of `HardwareConfig`.

    A file may start from a named configuration with the key ``base``.
    """
    if name_or_path in NAMED:
        return NAMED[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        raise BadInput(f"hardware {name_or_path!r} is neither a file nor one of {', '.join(NAMED)}")
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a TOML file ({error})") from None
    base = values.pop("base", None)
    if base is not None:
        if base not in NAMED:
            raise BadInput(f"{path}: base must be one of {', '.join(NAMED)}, found {base!r}")
        values = {
            **asdict(NAMED[base]),
            "acc_bits": 0,
            "norm_lanes": 0,
            "post_lanes": 0,
            "gate_lanes": 0,
            **values,
        }
    values.setdefault("name", path.stem)
    return HardwareConfig.from_dict(values, str(path))
