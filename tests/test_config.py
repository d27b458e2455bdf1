"""Capacities: a model that does not fit is refused with both sizes and the remedy."""

from dataclasses import replace

import pytest

from edgemoe.checkpoint import EDGE_MOE
from edgemoe.config import NAMED, check, fit, needs
from edgemoe.errors import DoesNotFit

HARDWARE = NAMED["m3vit-256"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"expert_dim": 768},
            r"needs hidden 768 \(198144 B of activation memory\), hardware m3vit-256 has 384 \(99072 B\); raise hidden",
        ),
        (
            {"dim": 384},
            r"needs dim 384 \(99072 B of activation memory\), hardware m3vit-256 has 192 \(49536 B\); raise dim",
        ),
        (
            {"channels": 4},
            r"needs row 1024 \(16384 B of slots in each set\), hardware m3vit-256 has 768 \(12288 B\); raise row",
        ),
        ({"height": 144}, "needs tokens 145, hardware m3vit-256 has 129; raise tokens"),
        ({"heads": 4}, "needs heads 4, hardware m3vit-256 has 3; raise heads"),
        ({"experts": 17}, "needs experts 17, hardware m3vit-256 has 16; raise experts"),
        ({"top_k": 3}, "needs top_k 3, hardware m3vit-256 has 2; raise top_k"),
    ],
)
def test_a_model_that_does_not_fit_names_both_sizes(changes, message):
    model = replace(EDGE_MOE, **changes)
    with pytest.raises(DoesNotFit, match=message + r" in the hardware file or use --fit$"):
        check(model, HARDWARE)
    check(model, fit(HARDWARE, model))


def test_an_image_that_does_not_fit_names_both_sizes():
    hardware = replace(HARDWARE, image=1024)
    wanted = r"needs image 98304 \(196608 B of activation memory\), hardware m3vit-256 has 1024 \(2048 B\)"
    with pytest.raises(DoesNotFit, match=wanted):
        check(EDGE_MOE, hardware)


def test_what_fits_needs_no_more_than_there_is():
    check(EDGE_MOE, HARDWARE)
    assert all(value <= getattr(HARDWARE, key) for key, value in needs(EDGE_MOE, HARDWARE).items())
