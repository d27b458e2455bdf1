"""From a quantised model and a hardware configuration to a program and a memory image.

The program of an image, in order (docs/architecture.md, "Program")::

    LOAD pos_embed -> x     IMAGE -> norm and on     PRODUCT patches -> x (rows 1..)
    for every block:
        NORM x -> norm      PRODUCT q     PRODUCT k per head     PRODUCT v per head
        per head: PRODUCT q k^T -> scores (in norm)     PRODUCT weights v -> attention (over the head's q)
        PRODUCT proj -> x   NORM x -> norm
        dense:   EXPERTS over slices of the hidden channels, every token
        mixture: PRODUCT gate -> scores (in k)     ROUTE     EXPERTS over the queues
    NORM, PRODUCT, STORE of the logits if there are heads       STORE x       END

Hazards. The executor takes products in order and has one reader of operand A, so a later product never
writes what an earlier one has yet to read. What remains, and the `wait` (ALL, ROWS) or `after` that covers it:

| reader | of | written by | covered by |
|---|---|---|---|
| LOAD | x (overwritten) | the image before | ALL |
| embed | image, x | IMAGE, LOAD | ALL (`after` of its weights is no hazard: it leaves the port to the image) |
| NORM | x | embed, unrouted EXPERTS, proj | ROWS |
| NORM | x | routed EXPERTS (rows in another order) | ALL |
| q after that NORM | (overwrites hidden or image, whose rows may still be read) | | in order, if rows of q are not longer; else NORM has ALL |
| NORM | (overwrites norm, or the image in the first block) | | its row t is written when the last use of row t has been read; rows of the image are longer, else ALL |
| NORM's parameters in the filler | the buffer of parameters | the NORM before (LOAD for the first one) | `after` |
| q, gate, unrouted EXPERTS | norm | NORM | ROWS |
| k, v | norm | NORM | q has read all of it |
| QK, operand B | k of the head, its exponents | product k | `after` |
| QK, operand A | q | product q | complete before k is, which B waits for |
| AV, operand B | v of the head, its exponents | product v | `after` |
| QK | (overwrites norm) | | in order: q, k and v have read it |
| AV, operand A | scores, row maxima | QK | ROWS |
| AV | (overwrites q of its head) | | in order: QK has read it |
| QK of the next head | (overwrites scores) | | in order |
| proj | attention, x | AV, earlier residuals | ROWS |
| gate | (overwrites k) | | QK is long complete |
| ROUTE | gate scores | gate | ALL |
| routed EXPERTS | queues | ROUTE | ALL, and `after` for DMA and filler |
| head, STORE | norm or x; logits | NORM, EXPERTS; head | ALL |

ROWS (`isa.Wait`) needs two slot sets or more; with one it becomes ALL.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemoe.config import A_BITS, HardwareConfig, check
from edgemoe.errors import BadInput, DoesNotFit
from edgemoe.isa import DESCRIPTOR_BYTES, FIELDS, Descriptor, Dest, Mode, Op, Source, Wait
from edgemoe.memmap import (
    MemoryImage,
    Page,
    Parameters,
    Stored,
    image_bytes,
    pack_norm,
    pack_parameters,
    pack_product,
    pack_rows,
    pad_lanes,
    pad_region,
    patch_positions,
    rows_bytes,
    split_digits,
)
from edgemoe.numeric import IntArray, ceil_div, round_up
from edgemoe.program import Program, Region, Symbol, Tensor
from edgemoe.units.layernorm import epsilon_term, mean_reciprocal

if TYPE_CHECKING:
    from edgemoe.quantize import Block, Linear, Norm, QuantizedModel

MAX_AFTER = (1 << FIELDS["after"]) - 1


def compile_model(model: QuantizedModel, hardware: HardwareConfig, pixel_bytes: int = 2) -> Program:
    """The program and memory image that run ``model`` on ``hardware``.

    Args:
        pixel_bytes: bytes of a pixel in external memory: 1 for uint8 images, 2 for any.

    Raises:
        BadInput: the model has another profile than the hardware, or ``pixel_bytes`` is neither 1 nor 2.
        DoesNotFit: a capacity, a field or the external memory is exceeded; the message has both sizes.
    """
    if model.b_bits != hardware.b_bits:
        raise BadInput(
            f"model {model.config.name} has {model.b_bits}-bit weights, hardware {hardware.name} "
            f"({hardware.profile}) takes {hardware.b_bits}; compile with --profile {model.profile}"
        )
    if pixel_bytes not in (1, 2):
        raise BadInput(f"pixel_bytes must be 1 or 2, found {pixel_bytes}")
    check(model.config, hardware)
    return _Compiler(model, hardware, pixel_bytes).run()


@dataclass
class _Compiler:
    """Descriptors and memory image under construction; addresses are relative to the constants until the end."""

    model: QuantizedModel
    hw: HardwareConfig
    pixel_bytes: int
    descriptors: list[Descriptor] = field(default_factory=list)
    symbols: list[Symbol] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)

    def __post_init__(self) -> None:
        c, hw = self.model.config, self.hw
        self.memory = MemoryImage(hw)
        self.tokens = c.tokens
        self.token_words = ceil_div(c.dim, hw.in_lanes)
        self.head_dim = hw.head_dim(c)
        self.head_words = self.head_dim // hw.in_lanes
        self.row_words = c.heads * self.head_words
        """Words of a row of q, k or the attention output: all heads, each padded to whole words."""
        self.key_words = ceil_div(c.tokens, hw.in_lanes)
        self.last_norm = 0
        """Descriptor whose completion frees the buffer of NORM's parameters."""

    def base(self, page: Page) -> int:
        return self.hw.page_base(page)

    # -- building blocks --------------------------------------------------------------------------

    def emit(self, descriptor: Descriptor, *tensors: Tensor) -> int:
        """Append a descriptor; returns its number."""
        number = len(self.descriptors)
        self.descriptors.append(descriptor)
        self.symbols.append(Symbol(number, tensors))
        return number

    def region(self, name: str, raw: bytes) -> dict[str, int]:
        """Append a region to the memory image; its ``address`` and ``length`` as fields."""
        address, length = self.memory.append(raw)
        self.regions.append(Region(name, address * self.hw.port_bytes, len(raw)))
        return {"address": address, "length": length}

    def tensor(self, name: str, **extra: Any) -> Tensor:
        """Name and format of what a descriptor writes."""
        key = extra.pop("format", name)
        factor = tuple(float(f) for f in self.model.factors.get(key, ()))
        if "head" in extra:
            size, head = self.model.config.head_dim, extra.pop("head")
            factor = factor[head * size : (head + 1) * size]
        return Tensor(name, int(self.model.formats.get(key, 0)), factor=factor, **extra)

    def parameters(self, linear: Linear, name: str) -> Parameters:
        """Channel parameters of a layer."""
        return Parameters.of(linear.multiplier, linear.shift, linear.bias, name)

    def pack(self, name: str, weights: IntArray, parameters: Parameters) -> bytes:
        """A product's part of the weight stream, after the proof that its accumulator cannot overflow."""
        self.prove(name, np.abs(weights).sum(axis=1))
        return pack_product(self.hw, weights, parameters)

    def prove(self, name: str, magnitude: IntArray) -> None:
        """Raise `DoesNotFit` if operand A of full range times rows of this absolute sum overflows."""
        needed = int(magnitude.max(initial=0) << (A_BITS - 1)).bit_length() + 1
        if needed > self.hw.acc_bits:
            raise DoesNotFit(
                f"{name}: the accumulator needs {needed} bits, hardware {self.hw.name} has acc_bits "
                f"{self.hw.acc_bits}; raise acc_bits"
            )

    def norm(self, norm: Norm, name: str, count: int, wait: Wait) -> None:
        """Layer norm of the first ``count`` tokens of x into page norm."""
        dim = self.model.config.dim
        try:
            eps_term = epsilon_term(norm.eps, dim, norm.x_frac)
        except ValueError as error:
            raise BadInput(f"{name}: {error}") from None
        raw = pad_region(self.hw, pack_norm(self.hw, norm.gamma, norm.beta))
        distance = len(self.descriptors) - self.last_norm
        self.last_norm = self.emit(
            Descriptor(
                op=Op.NORM, wait=wait, after=min(distance, MAX_AFTER), source=Source.NORM,
                count=count, words=self.token_words, rows=self.token_words * self.hw.in_lanes,
                a_base=self.base(Page.X), a_stride=self.token_words,
                d_base=self.base(Page.NORM), d_stride=self.token_words,
                dim=dim, eps_term=eps_term, mean_reciprocal=mean_reciprocal(dim), shift=int(norm.shift),
                **self.region(name, raw),
            ),
            self.tensor(name),
        )  # fmt: skip

    def product(self, name: str, raw: bytes, tensor: Tensor, **fields: int) -> int:
        """A product with weights from the stream."""
        return self.emit(
            Descriptor(
                op=Op.PRODUCT, source=Source.WEIGHTS, **self.region(name, pad_region(self.hw, raw)), **fields
            ),
            tensor,
        )

    # -- the program ------------------------------------------------------------------------------

    def run(self) -> Program:
        """Everything."""
        c = self.model.config
        self.embed()
        for number, block in enumerate(self.model.blocks):
            self.attention(number, block)
            self.norm(block.norm2, f"l{number}_norm2", self.tokens, self.rows)
            if number in c.moe_blocks:
                self.mixture(number, block)
            else:
                self.dense(number, block)
        outputs = self.outputs()
        return self.finish(outputs)

    @property
    def rows(self) -> Wait:
        """How a phase waits for the one before, whose rows it reads in the same order."""
        return Wait.ROWS if self.hw.slot_sets > 1 else Wait.ALL

    def before_attention(self, number: int) -> Wait:
        """How a block's first NORM waits for the residual (see the table of hazards)."""
        c = self.model.config
        if number == 0:
            before = self.hw.patch_values(
                c
            )  # not shorter than a token either: a row of q has all heads padded
        elif number - 1 in c.moe_blocks:
            return Wait.ALL
        else:
            before = self.hw.hidden_slices(c, number - 1)[1]
        return self.rows if before >= self.row_words * self.hw.in_lanes else Wait.ALL

    def embed(self) -> None:
        """x = pos_embed + patches; the class token is row 0."""
        c, hw = self.model.config, self.hw
        self.emit(
            Descriptor(
                op=Op.LOAD, wait=Wait.ALL, d_base=self.base(Page.X),
                **self.region("pos_embed", pack_rows(hw, self.model.pos_embed)),
            ),
            self.tensor("pos_embed", format="embed"),
        )  # fmt: skip
        segment, width = hw.segment(c), hw.patch_values(c)
        words = width // hw.in_lanes
        image_words = image_bytes(hw, c, self.pixel_bytes) // hw.port_bytes
        self.emit(
            Descriptor(
                op=Op.IMAGE, d_base=self.base(Page.NORM), d_stride=words, length=image_words, stride=image_words,
                channels=c.channels, grid_y=c.grid[0], grid_x=c.grid[1], patch_y=c.patch[0], patch_x=c.patch[1],
                segment=segment, pixel_bytes=self.pixel_bytes,
            ),
            Tensor("image", 15),
        )  # fmt: skip
        linear = self.model.embed
        weights = np.zeros((c.dim, width), np.int64)
        positions = patch_positions(hw, c.channels, *c.patch, segment)
        weights[:, positions] = np.reshape(linear.weight, (c.dim, -1))
        self.product(
            "embed", self.pack("embed", weights, self.parameters(linear, "embed")), self.tensor("embed"),
            # filled ahead of the image, the slots would only delay it: both come through one port
            wait=Wait.ALL, after=1, count=self.tokens - 1, words=words, rows=c.dim,
            a_base=self.base(Page.NORM), a_stride=words,
            d_base=self.base(Page.X) + self.token_words, d_stride=self.token_words, dest=Dest.RESIDUAL,
        )  # fmt: skip

    def head_positions(self, heads: Iterable[int]) -> IntArray:
        """Positions of the real channels of ``heads``, each padded to ``head_dim``."""
        first = np.arange(len(list(heads))) * self.head_dim
        return (first[:, None] + np.arange(self.model.config.head_dim)).ravel()

    def attention(self, number: int, block: Block) -> None:
        """q, k, v, the heads, and the projection into the residual."""
        c, prefix = self.model.config, f"l{number}_"
        self.norm(block.norm1, f"{prefix}norm1", self.tokens, self.before_attention(number))
        self.projection(
            prefix + "q", block.q, range(c.heads), self.base(Page.Q), wait=self.rows, dest=Dest.ROWS
        )
        k_page, v_page = self.base(Page.K), self.base(Page.V)
        keys, values = [], []
        for h in range(c.heads):
            base = k_page + h * self.head_words
            keys.append(self.projection(f"{prefix}k", block.k, [h], base, dest=Dest.KEYS, head=h))
        for h in range(c.heads):
            base = v_page + h * self.head_dim * self.key_words
            values.append(self.projection(f"{prefix}v", block.v, [h], base, dest=Dest.VALUES, head=h))
        for h in range(c.heads):
            self.scores(prefix, block, h, keys[h])
            self.weighted_sum(prefix, block, h, values[h])
        weights = np.zeros((c.dim, c.heads * self.head_dim), np.int64)
        weights[:, self.head_positions(range(c.heads))] = block.proj.weight
        name = f"{prefix}proj"
        self.product(
            name, self.pack(name, weights, self.parameters(block.proj, name)), self.tensor(f"{prefix}post_attn"),
            wait=self.rows, count=self.tokens, words=self.row_words, rows=c.dim,
            a_base=self.base(Page.Q), a_stride=self.row_words,
            d_base=self.base(Page.X), d_stride=self.token_words, dest=Dest.RESIDUAL, realign=int(block.realign),
        )  # fmt: skip

    def projection(self, name: str, linear: Linear, heads: Iterable[int], base: int, **fields: int) -> int:
        """Channels of ``heads`` of q, k or v from page norm."""
        c, heads = self.model.config, list(heads)
        first, last = heads[0] * c.head_dim, (heads[-1] + 1) * c.head_dim
        rows, positions = len(heads) * self.head_dim, self.head_positions(heads)
        weights = np.zeros((rows, self.token_words * self.hw.in_lanes), np.int64)
        weights[positions, : c.dim] = linear.weight[first:last]
        part = Parameters.of(*(v[first:last] for v in (linear.multiplier, linear.shift, linear.bias)), name)
        values = fields["dest"] == Dest.VALUES
        part_of = {} if fields["dest"] == Dest.ROWS else {"head": heads[0]}
        full = f"{name}_h{heads[0]}" if part_of else name
        return self.product(
            full, self.pack(full, weights, part.spread(positions, rows)),
            self.tensor(full, format=name, channels=tuple(int(p) for p in positions), **part_of),
            count=self.tokens, words=self.token_words, rows=rows,
            a_base=self.base(Page.NORM), a_stride=self.token_words,
            d_base=base, d_stride=self.key_words if values else self.row_words, **fields,
        )  # fmt: skip

    def scores(self, prefix: str, block: Block, h: int, key: int) -> None:
        """QK of a head: the slots hold its keys, its queries stream."""
        multiplier, shift = (int(v) for v in block.score[h])
        name = f"{prefix}scores_h{h}"
        self.check_shift(name, shift)
        self.prove(name, np.array([self.head_dim << (self.hw.b_bits - 1)]))
        offset = h * self.head_words
        self.emit(
            Descriptor(
                op=Op.PRODUCT, after=len(self.descriptors) - key, source=Source.KEYS, dest=Dest.SCORES,
                count=self.tokens, words=self.head_words, rows=self.tokens,
                a_base=self.base(Page.Q) + offset, a_stride=self.row_words,
                b_base=self.base(Page.K) + offset, b_stride=self.row_words,
                d_base=self.base(Page.NORM), d_stride=self.key_words,
                head=h, multiplier=multiplier, shift=shift,
            ),
            Tensor(name, 13),
        )  # fmt: skip

    def weighted_sum(self, prefix: str, block: Block, h: int, value: int) -> None:
        """AV of a head: the slots hold its values transposed, the attention weights stream."""
        c = self.model.config
        name, part = f"{prefix}attention_h{h}", slice(h * c.head_dim, (h + 1) * c.head_dim)
        shift = np.asarray(block.attention_shift)[part]
        self.check_shift(name, int(shift.min()))
        self.prove(name, np.array([self.tokens << (self.hw.b_bits - 1)]))
        parameters = Parameters.of(np.asarray(block.attention_multiplier)[part], shift, 0, name).padded(
            self.head_dim
        )
        raw = pad_region(self.hw, pack_parameters(self.hw, parameters))
        self.emit(
            Descriptor(
                op=Op.PRODUCT, wait=self.rows, after=len(self.descriptors) - value, source=Source.VALUES, dest=Dest.ROWS,
                mode=Mode.ROW_CHANNEL, weigh=1, keys=self.tokens,
                count=self.tokens, words=self.key_words, rows=self.head_dim,
                a_base=self.base(Page.NORM), a_stride=self.key_words,
                b_base=self.base(Page.V) + h * self.head_dim * self.key_words, b_stride=self.key_words,
                d_base=self.base(Page.Q) + h * self.head_words, d_stride=self.row_words, head=h,
                **self.region(name, raw),
            ),
            self.tensor(name, format=f"{prefix}attention", head=h, channels=tuple(range(c.head_dim))),
        )  # fmt: skip

    def check_shift(self, name: str, shift: int) -> None:
        """A block exponent is taken from the shift; what is left must be at least 1."""
        largest = A_BITS - self.hw.b_bits
        if shift <= largest:
            raise BadInput(f"{name}: shift must exceed {largest}, the largest block exponent, found {shift}")

    def expert_fields(self, hidden_words: int) -> dict[str, int]:
        """What every EXPERTS has in common."""
        lanes, dim = self.hw.in_lanes, self.model.config.dim
        return {
            "source": Source.WEIGHTS, "gelu": 1, "count": self.tokens,
            "words": self.token_words, "rows": hidden_words * lanes,
            "a_base": self.base(Page.NORM), "a_stride": self.token_words,
            "d_base": self.base(Page.Q), "d_stride": hidden_words,
            "rows2": dim, "words2": hidden_words, "a2_base": self.base(Page.Q),
            "d2_base": self.base(Page.X), "d2_stride": self.token_words,
        }  # fmt: skip

    def expert_region(
        self, name: str, fc1: Parameters, w1: IntArray, fc2: Parameters, w2: IntArray, width: int
    ) -> bytes:
        """fc1 (channels, dim) then fc2 (dim, channels), the channels padded to ``width``."""
        rows = np.zeros((width, self.token_words * self.hw.in_lanes), np.int64)
        rows[: len(w1), : w1.shape[1]] = w1
        columns = np.zeros((len(w2), width), np.int64)
        columns[:, : w2.shape[1]] = w2
        raw = self.pack(f"{name}_fc1", rows, fc1.padded(width)) + self.pack(f"{name}_fc2", columns, fc2)
        return pad_region(self.hw, raw)

    def experts(self, name: str, regions: list[bytes], width: int, block: Block, **fields: int) -> None:
        """EXPERTS over equally long regions."""
        where = self.region(f"{name}_experts", b"".join(regions))
        where["length"] //= len(regions)
        self.emit(
            Descriptor(
                op=Op.EXPERTS, experts=len(regions), frac=int(block.gelu_frac), **where, **fields,
                **self.expert_fields(width // self.hw.in_lanes),
            ),
            Tensor(f"{name}_hidden_e{{e}}", int(block.gelu_frac)),
            self.tensor(f"{name}_post_mlp_e{{e}}", format=f"{name}_post_mlp"),
        )  # fmt: skip

    def dense(self, number: int, block: Block) -> None:
        """A dense MLP as experts that every token visits; the bias of fc2 is in the first slice."""
        name = f"l{number}"
        slices, width = self.hw.hidden_slices(self.model.config, number)
        assert block.mlp is not None  # by construction: a block without gates
        fc1, fc2 = block.mlp
        part = ceil_div(self.model.config.mlp_dim, slices)
        p1, p2 = self.parameters(fc1, f"{name}_fc1"), self.parameters(fc2, f"{name}_fc2")
        regions = []
        for s in range(slices):
            cut = slice(s * part, (s + 1) * part)
            first = Parameters(p1.multiplier[cut], p1.shift[cut], p1.bias[cut])
            second = p2 if s == 0 else replace(p2, bias=np.zeros_like(p2.bias))
            weights = np.asarray(fc1.weight)[cut], np.asarray(fc2.weight)[:, cut]
            regions.append(self.expert_region(name, first, weights[0], second, weights[1], width))
        self.experts(name, regions, width, block, wait=self.rows)

    def mixture(self, number: int, block: Block) -> None:
        """Gate of the task, routing, and the experts that have tokens."""
        c, hw, name = self.model.config, self.hw, f"l{number}"
        words = ceil_div(c.experts, hw.in_lanes)
        regions = [pad_region(hw, self.gate(f"{name}_gate", g)) for g in block.gates]
        where = self.region(f"{name}_gate", b"".join(regions))
        where["length"] //= len(regions)
        self.emit(
            Descriptor(
                op=Op.PRODUCT, wait=self.rows, source=Source.WEIGHTS, dest=Dest.SCORES, double=int(hw.b_bits == 8),
                count=self.tokens, words=self.token_words, rows=c.experts,
                a_base=self.base(Page.NORM), a_stride=self.token_words,
                d_base=self.base(Page.K), d_stride=words, stride=where["length"], **where,
            ),
            Tensor(f"{name}_gate", 13),
        )  # fmt: skip
        self.emit(
            Descriptor(
                op=Op.ROUTE, wait=Wait.ALL, count=self.tokens, words=words, a_base=self.base(Page.K), a_stride=words,
                experts=c.experts, top_k=c.top_k,
            ),
            Tensor(f"{name}_topk", 0), Tensor(f"{name}_score", 15),
        )  # fmt: skip
        _, width = hw.hidden_slices(c, number)
        regions = [
            self.expert_region(
                f"{name}_e{e}", self.parameters(a, f"{name}_e{e}_fc1"), np.asarray(a.weight),
                self.parameters(b, f"{name}_e{e}_fc2"), np.asarray(b.weight), width,
            )
            for e, (a, b) in enumerate(zip(block.fc1, block.fc2))
        ]  # fmt: skip
        self.experts(name, regions, width, block, wait=Wait.ALL, routed=1, after=1, top_k=c.top_k)

    def gate(self, name: str, gate: Linear) -> bytes:
        """The gate of one task; on an 8-bit B a row is its high digits, then its low digits."""
        self.prove(name, np.abs(np.asarray(gate.weight, np.int64)).sum(axis=1))
        parts = split_digits(gate.weight) if self.hw.b_bits == 8 else (np.asarray(gate.weight),)
        weights = np.concatenate([pad_lanes(self.hw, p) for p in parts], axis=1)
        return pack_product(self.hw, weights, self.parameters(gate, name))

    def outputs(self) -> tuple[Stored, ...]:
        """Head and stores: the logits, if there are heads, then x."""
        c, hw = self.model.config, self.hw
        stored: list[Stored] = []
        wait = Wait.ALL
        if c.has_heads:
            words = self.head()
            self.emit(
                Descriptor(
                    op=Op.STORE, wait=Wait.ALL, count=1, words=words, a_base=self.base(Page.Q), a_stride=words
                ),
                Tensor("logits", 0),
            )
            fracs = tuple(int(self.model.formats.get(f"logits{t}", 0)) for t in range(len(c.tasks)))
            stored.append(Stored("logits", 0, 1, words, max(c.classes), fracs))
            wait = Wait.NONE
        last = f"l{c.depth - 1}_post_mlp"
        offset = sum(rows_bytes(hw, s.rows, s.words) for s in stored)
        self.emit(
            Descriptor(
                op=Op.STORE, wait=wait, count=self.tokens, words=self.token_words,
                a_base=self.base(Page.X), a_stride=self.token_words, address=offset // hw.port_bytes,
            ),
            self.tensor("x", format=last),
        )  # fmt: skip
        fracs = (self.tensor("x", format=last).frac,) * len(c.tasks)
        stored.append(Stored("x", offset, self.tokens, self.token_words, c.dim, fracs))
        return tuple(stored)

    def head(self) -> int:
        """Logits of the class token into page q; returns their words.

        Tasks with fewer classes than others, or no head, have rows of zeros.
        """
        c, hw, model = self.model.config, self.hw, self.model
        page = Page.X
        if model.final_norm is not None:
            self.norm(model.final_norm, "norm", 1, Wait.ALL)
            page = Page.NORM
        rows = round_up(max(c.classes), hw.in_lanes)
        if rows // hw.in_lanes > hw.page_words:
            raise DoesNotFit(
                f"model {c.name} has {rows} classes, a page of hardware {hw.name} holds "
                f"{hw.page_words * hw.in_lanes} values; raise tokens or dim"
            )
        regions = []
        for task, linear in enumerate(model.heads):
            weights, parameters = (
                np.zeros((rows, self.token_words * hw.in_lanes), np.int64),
                Parameters.of([], [], []),
            )
            if linear is not None:
                weights[: len(linear.weight), : c.dim] = linear.weight
                parameters = self.parameters(linear, f"head {task}")
            regions.append(pad_region(hw, self.pack(f"head {task}", weights, parameters.padded(rows))))
        where = self.region("heads", b"".join(regions))
        where["length"] //= len(regions)
        self.emit(
            Descriptor(
                op=Op.PRODUCT, wait=Wait.ALL, source=Source.WEIGHTS, dest=Dest.ROWS, count=1, words=self.token_words,
                rows=rows, a_base=self.base(page), a_stride=self.token_words, d_base=self.base(Page.Q),
                d_stride=rows // hw.in_lanes, stride=where["length"], **where,
            ),
            Tensor("head", 0),
        )  # fmt: skip
        return rows // hw.in_lanes

    # -- the end ----------------------------------------------------------------------------------

    def finish(self, outputs: tuple[Stored, ...]) -> Program:
        """Place the program before the constants, and check what everything takes together."""
        hw = self.hw
        self.emit(Descriptor(op=Op.END, wait=Wait.ALL))
        output_bytes = sum(rows_bytes(hw, s.rows, s.words) for s in outputs)
        size = round_up(len(self.descriptors) * DESCRIPTOR_BYTES, hw.port_bytes)
        raw = []
        for number, d in enumerate(self.descriptors):
            if d.op in (Op.LOAD, Op.NORM, Op.PRODUCT, Op.EXPERTS) and d.length:
                d = replace(d, address=d.address + size // hw.port_bytes)
            if d.op == Op.STORE:
                d = replace(d, stride=output_bytes // hw.port_bytes)
            try:
                raw.append(d.pack())
            except ValueError as error:
                raise DoesNotFit(
                    f"model {self.model.config.name} on {hw.name}: descriptor {number}: {error}"
                ) from None
        memory = b"".join(raw).ljust(size, b"\0") + self.memory.tobytes()
        image = image_bytes(hw, self.model.config, self.pixel_bytes)
        total = len(memory) + image + output_bytes
        if total > hw.memory_bytes:
            raise DoesNotFit(
                f"model {self.model.config.name} needs {total} bytes of external memory (program and weights "
                f"{len(memory)}, image {image}, output {output_bytes}), hardware {hw.name} has {hw.memory_bytes}; "
                "raise memory_bytes"
            )
        return Program(
            model=self.model.config, hardware=hw, memory=memory, symbols=tuple(self.symbols),
            regions=(Region("program", 0, size), *(replace(r, offset=r.offset + size) for r in self.regions)),
            outputs=outputs, image_words=image // hw.port_bytes, output_words=output_bytes // hw.port_bytes,
            pixel_bytes=self.pixel_bytes,
        )  # fmt: skip
