"""`Buffer` passes every payload once, in order, at full rate, under every stall pattern."""

import pytest

from bench import STALLS, run
from edgemoe.stream import Buffer


@pytest.mark.parametrize("stall", STALLS)
def test_buffer_keeps_order(stall):
    sent = list(range(100))
    result = run(Buffer(8), {"i": sent}, {"o": len(sent)}, stall=stall)
    assert result.values["o"] == sent
    if stall == "none":
        assert result.cycles_out["o"][-1] - result.cycles_out["o"][0] == len(sent) - 1
