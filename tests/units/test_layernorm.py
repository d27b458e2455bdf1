"""Layer norm: gateware equals golden at the stated cycles, and golden is close to float."""

import numpy as np
import pytest
from amaranth.back import verilog
from amaranth.hdl import Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from bench import STALLS, run
from edgemoe.numeric import ceil_div
from edgemoe.units.layernorm import (
    LayerNorm,
    LayerNormSpec,
    RowScalars,
    cycles,
    epsilon_term,
    inverse_sigma,
    latency,
    layernorm,
    mean_reciprocal,
    normalised,
)

TAG = 9
CONFIGURATION = ("dim", "words", "eps_term", "mean_reciprocal", "shift")


# -- bench --------------------------------------------------------------------------------------


class Jobs(wiring.Component):
    """Feeds a `LayerNorm` from one stream: parameters and configuration once it is empty, then rows.

    The output is not taken during the first ``blocked`` cycles.
    """

    def __init__(self, dut, blocked=0):
        self.dut, self.blocked = dut, blocked
        self.configuration = data.StructLayout({n: dut.signature.members[n].shape for n in CONFIGURATION})
        layout = data.StructLayout(
            {
                "rows": 1,
                "configuration": self.configuration,
                "parameters": dut.parameters.payload.shape(),
                "word": dut.i.payload.shape(),
            }
        )
        super().__init__(
            {"i": In(stream.Signature(layout)), "o": Out(stream.Signature(dut.o.payload.shape()))}
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = dut = self.dut
        i, held, inside = self.i.payload, Signal(self.configuration), Signal(16)
        wait = Signal(range(self.blocked + 1), init=self.blocked)
        m.d.sync += wait.eq(wait - (wait != 0))
        m.d.comb += [
            self.o.valid.eq(dut.o.valid & (wait == 0)),
            Value.cast(self.o.payload).eq(Value.cast(dut.o.payload)),
            dut.o.ready.eq(self.o.ready & (wait == 0)),
            dut.i.valid.eq(self.i.valid & i.rows),
            Value.cast(dut.i.payload).eq(Value.cast(i.word)),
            dut.parameters.valid.eq(self.i.valid & ~i.rows & (inside == 0)),
            Value.cast(dut.parameters.payload).eq(Value.cast(i.parameters)),
            self.i.ready.eq((dut.i.ready & i.rows) | (~i.rows & (inside == 0) & dut.parameters.ready)),
            *(getattr(dut, name).eq(held[name]) for name in CONFIGURATION),
        ]
        m.d.sync += inside.eq(inside + (dut.i.valid & dut.i.ready) - (self.o.valid & self.o.ready))
        with m.If(dut.parameters.valid):
            m.d.sync += held.eq(i.configuration)
        return m


def rows_of(rng, count, dim):
    """Rows of every kind: normal, tiny, constant, extreme, one-hot, uniform."""
    x = np.zeros((count, dim), np.int64)
    for n in range(count):
        match rng.integers(7):
            case 0 | 1:
                x[n] = np.round(rng.normal(rng.normal() * 500, 10 ** rng.uniform(0, 4), dim)).clip(
                    -32768, 32767
                )
            case 2:
                x[n] = rng.integers(-2, 3, dim)
            case 3:
                x[n] = rng.integers(-32768, 32768)
            case 4:
                x[n] = rng.choice([-32768, 32767], dim)
            case 5:
                x[n, rng.integers(dim)] = rng.choice([-32768, -1, 1, 32767])
            case 6:
                x[n] = rng.integers(-32768, 32768, dim)
    return x


def random_job(rng, dim, rows):
    """A configuration, its parameters and its rows; most results do not saturate."""
    beta_bits = int(rng.choice([20, 30, 41]))
    return {
        "x": rows_of(rng, rows, dim),
        "gamma": rng.integers(-32768, 32768, dim),
        "beta": rng.integers(-(1 << beta_bits), 1 << beta_bits, dim),
        "shift": int(rng.choice([max(beta_bits - 15, 14), 14, 16, 17, 0, 1, 63])),
        "eps_term": int(rng.choice([0, 1, dim * dim, 1000 * dim * dim])),
    }


def pad(a, n):
    return np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, n - a.shape[-1])])


def payloads(spec, q, job):
    """What the bench sends for a job, and the words expected."""
    dim = job["x"].shape[1]
    words = ceil_div(dim, spec.in_lanes)
    configuration = {"dim": dim, "words": words, "eps_term": job["eps_term"],
                     "mean_reciprocal": mean_reciprocal(dim), "shift": job["shift"]}  # fmt: skip

    channels = ceil_div(words * spec.in_lanes, q) * q
    gamma, beta = (pad(job[name], channels).reshape(-1, q).tolist() for name in ("gamma", "beta"))
    sent = [
        {"rows": 0, "configuration": configuration,
         "parameters": {"gamma": g, "beta": b, "last": int(n == len(gamma) - 1)}}
        for n, (g, b) in enumerate(zip(gamma, beta, strict=True))
    ]  # fmt: skip

    def stream_words(rows):
        flat = pad(rows, words * spec.in_lanes).reshape(-1, spec.in_lanes).tolist()
        return [
            {"x": x, "last": int((n + 1) % words == 0), "tag": (n * 7 + dim) % (1 << TAG)}
            for n, x in enumerate(flat)
        ]

    expected = layernorm(job["x"], job["gamma"], job["beta"], job["shift"], job["eps_term"], spec)
    sent += [{"rows": 1, "word": word} for word in stream_words(job["x"])]
    return sent, stream_words(expected)


def check(spec, q, jobs, stall="none", blocked=0):
    """Run jobs one after the other; all results are equal, and without stalls every job takes `cycles`."""
    sent, expected, sizes = [], [], []
    for job in jobs:
        s, e = payloads(spec, q, job)
        sent, expected = sent + s, expected + e
        sizes.append((len(s) - len(e), len(e)))
    result = run(Jobs(LayerNorm(spec, q, TAG), blocked), {"i": sent}, {"o": len(expected)}, stall=stall)
    assert result.values["o"] == expected
    if stall == "none" and not blocked:
        start = end = 0
        for job, (before, amount) in zip(jobs, sizes, strict=True):
            start, end = start + before, end + amount
            measured = result.cycles_out["o"][end - 1] - result.cycles_in["i"][start] + 1
            assert measured == cycles(spec, *job["x"].shape)
            start += amount


# -- gateware -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize(
    ("in_lanes", "norm_lanes", "q", "dims"),
    [
        (8, 4, 2, (40, 21)),
        (8, 8, 1, (9, 64)),
        (4, 1, 4, (13, 3)),
        (4, 2, 8, (24, 1)),
        (1, 1, 1, (5, 1)),
        (16, 4, 16, (48, 17)),
    ],
)
def test_gateware_equals_golden(in_lanes, norm_lanes, q, dims, stall):
    rng = np.random.default_rng(in_lanes * 100 + norm_lanes * 10 + q)
    spec = LayerNormSpec(in_lanes, norm_lanes, max(dims))
    check(spec, q, [random_job(rng, dim, 6) for dim in (*dims, dims[0])], stall)


@pytest.mark.parametrize("dim", [256, 257, 300])
def test_rows_beyond_256_are_wide(dim):
    rng = np.random.default_rng(dim)
    job = random_job(rng, dim, 3) | {"shift": 16}
    job["x"][0] = rng.normal(0, 3000, dim)
    job["x"][1] = np.eye(dim)[3] * 32767
    check(LayerNormSpec(16, 8, 320), 8, [job])


@pytest.mark.parametrize("dim", [8, 32, 96])
def test_throughput(dim):
    """Many rows: the interval is that of the lanes or of the scalars; no row waits for the buffer."""
    rng = np.random.default_rng(dim)
    check(LayerNormSpec(8, 8, 96), 8, [random_job(rng, dim, 20)])


def test_blocked_output_loses_nothing():
    """Far more rows than may be in flight arrive while the first result is not taken."""
    rng = np.random.default_rng(5)
    check(LayerNormSpec(4, 4, 256), 4, [random_job(rng, 4, 40)], blocked=1000)


def test_mantissa_is_saturated():
    """Variances for which 1/sigma rounds up to the next power of two give the largest mantissa."""
    spec, dim, variances = LayerNormSpec(8, 8, 24), 21, (1806319, 1806325, 1806400, 1)
    dut, factors = RowScalars(spec), []

    async def bench(ctx):
        ctx.set(dut.dim, dim)
        for variance in variances:
            ctx.set(dut.eps_term, variance)
            await ctx.tick().repeat(4)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            factors.append(await ctx.tick().sample(dut.factor).until(dut.valid))
            ctx.set(dut.take, 1)
            await ctx.tick()
            ctx.set(dut.take, 0)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    expected = inverse_sigma(variances, dim, spec)[0].tolist()
    assert [int(f) for (f,) in factors] == expected
    assert expected[1] == (1 << 16) - 1


def test_converts_to_verilog():
    assert "module top" in verilog.convert(LayerNorm(LayerNormSpec(16, 4, 192), 4, TAG))


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((12, 4, 64), "in_lanes must be a power of two, not 12"),
        ((8, 3, 64), "norm_lanes must be a power of two, not 3"),
        ((8, 16, 64), r"norm_lanes \(16\) exceeds in_lanes \(8\); lower it"),
        ((8, 8, 5000), "dim must be 1..4096, not 5000"),
        ((8, 8, 0), "dim must be 1..4096, not 0"),
    ],
)
def test_spec_is_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        LayerNormSpec(*wrong)


@pytest.mark.filterwarnings("ignore:.*created but never used")
def test_arguments_are_checked():
    spec = LayerNormSpec(8, 8, 64)
    with pytest.raises(ValueError, match="a row has 65 values, the unit was built for 1 to 64; raise dim"):
        normalised(np.zeros((2, 65)), 1, spec)
    with pytest.raises(ValueError, match="q must be a power of two, not 3"):
        LayerNorm(spec, 3)
    with pytest.raises(ValueError, match="eps 100.0 is .* lower frac or eps"):
        epsilon_term(100.0, 64, 15)


# -- accuracy -----------------------------------------------------------------------------------

SPEC = LayerNormSpec(16, 4, 1024)


def exact(x, eps_term):
    dim = x.shape[-1]
    variance = x.var(axis=-1, keepdims=True) + eps_term / dim**2
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(np.maximum(variance, 1e-300))


def decibel(error, signal=1.0):
    return 10 * np.log10(np.mean(np.square(signal)) / np.mean(np.square(error)))


@pytest.mark.parametrize("dim", [2, 7, 64, 192, 256, 257, 1024])
@pytest.mark.parametrize("sigma", [64, 500, 3000, 10000])
def test_accuracy_of_normal_rows(dim, sigma):
    rng = np.random.default_rng(dim + sigma)
    x = np.rint(rng.normal(rng.normal(0, sigma, (200, 1)), sigma, (200, dim))).clip(-32768, 32767)
    x = x.astype(np.int64)
    if dim < 64:  # a short row may by chance have a small sigma, where the mean's resolution counts
        x = x[x.std(axis=1) >= 64]
    error = normalised(x, 10, SPEC) / 4096 - exact(x, 10)
    print(f"dim {dim} sigma {sigma}: {decibel(error):.1f} dB, maximum {np.abs(error).max() * 4096:.2f} ulp")
    assert decibel(error) >= (79.0 if dim <= 256 else 75.5)
    assert np.abs(error).max() * 4096 < 3.5


@pytest.mark.parametrize("sigma", [1, 4, 16])
def test_accuracy_of_small_rows_is_that_of_the_mean(sigma):
    """mean6 is off by 1/128 code at most; beside that nothing is lost."""
    rng = np.random.default_rng(sigma)
    x = np.rint(rng.normal(30, sigma, (200, 192))).astype(np.int64)
    error = np.abs(normalised(x, 0, SPEC) / 4096 - exact(x, 0)).max()
    assert error < 1 / 128 / x.std(axis=1).min() + 3.5 / 4096


def test_accuracy_of_random_affine_rows():
    """Results with 10 fraction bits are within one code of float."""
    rng = np.random.default_rng(7)
    x = np.rint(rng.normal(0, 2000, (100, 192))).astype(np.int64)
    gamma, beta = rng.normal(1, 0.3, 192), rng.normal(0, 0.5, 192)
    codes = np.rint(gamma * 2**14).astype(np.int64), np.rint(beta * 2**26).astype(np.int64)
    eps_term = epsilon_term(1e-6, 192, 11)
    got = layernorm(x, *codes, 16, eps_term, SPEC)
    assert np.abs(got - (exact(x, eps_term) * gamma + beta) * 2**10).max() < 1.5


@pytest.mark.parametrize("dim", [1, 2, 3, 192, 256, 257, 1000, 1024])
def test_edge_rows(dim):
    constant = np.array([[-32768], [-1], [0], [1], [777], [32767]]) * np.ones((1, dim), np.int64)
    for eps_term in (0, 1, 10 * dim * dim):
        assert not normalised(constant, eps_term, SPEC).any()
    if dim == 1:
        return
    one_hot = np.zeros((4, dim), np.int64)
    one_hot[range(4), [0, 1, dim - 1, dim // 2]] = [32767, -32768, 1000, -1000]
    halves = np.where(np.arange(dim) % 2, 32767, -32768)[None]
    for x in (one_hot, halves, -1 - halves, 32767 - np.abs(one_hot)):
        error = normalised(x, 0, SPEC) / 4096 - exact(x, 0)
        assert np.abs(error).max() < (1 / 64 / x.std(axis=1).min()) + 4 / 4096


@pytest.mark.parametrize("dim", [1, 3, 192, 1023, 1024])
def test_inverse_sigma(dim):
    rng = np.random.default_rng(dim)
    top = dim * dim << 30
    variance = np.unique(np.concatenate([
        np.arange(1, 2000), np.exp2(rng.uniform(0, np.log2(top), 100_000)).astype(np.int64),
        *(2 ** np.arange(60) + d for d in (-1, 0, 1)), [top],
    ]))  # fmt: skip
    variance = variance[(variance > 0) & (variance <= top)]
    r, k = inverse_sigma(variance, dim, SPEC)
    assert r.min() >= 1 << 15 and r.max() < 1 << 16
    relative = r * np.exp2(-15.0 - k) / (dim / np.sqrt(variance)) - 1
    print(f"dim {dim}: relative error of 1/sigma 2^{np.log2(np.abs(relative).max()):.2f}")
    assert np.abs(relative).max() < 2**-15


@pytest.mark.parametrize("dim", [*range(1, 70), 192, 255, 256, 257, 1000, 4095, 4096])
def test_mean_reciprocal_is_24_bits(dim):
    exponent = (dim - 1).bit_length()
    r = mean_reciprocal(dim)
    assert 1 << 23 <= r < 1 << 24
    assert abs(r / 2 ** (exponent + 23) * dim - 1) <= 2**-24 * 1.0001


def test_latency_is_stated():
    spec = LayerNormSpec(16, 4, 192)
    assert latency(spec) == 51
    assert cycles(spec, 129, 192) == 129 * 48 + 47 + 51
