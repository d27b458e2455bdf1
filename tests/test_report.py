"""report.html: self-contained, well formed, and its numbers are those of the demo."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from edgemoe import report

STEPS = [
    ("pos_embed", "input", "input", 10), ("l0_q", "block 0", "q, k, v, proj", 40), ("l0_hidden", "block 0", "experts", 50),
    ("x", "output", "other", 5),
]  # fmt: skip


@pytest.fixture
def values():
    return {
        "edgemoe": "1.2.3", "images": 2, "tasks": 2, "task_names": ["left", "right"], "mismatches": 0,
        "tensors_compared": 1234, "first_difference": None, "cycles_per_image": 105.0, "mac_utilisation": 0.5,
        "external_bytes_per_image": 2000.0, "accuracy_images": 2, "accuracy_float": [1.0, 0.5],
        "accuracy_golden": [0.5, 0.5], "model": {"name": "<tiny>"}, "macs": {"q, k, v, proj": 1280, "experts": 3200},
        "hardware": {"name": "hw", "in_lanes": 8, "out_lanes": 8, "profile": "w8a16", "port_bytes": 8},
        "results": [
            {"image": i, "answers": [{"truth": 3, "float": 3, "golden": 3, "gateware": 3 + i}] * 2} for i in range(2)
        ],
        "experts": [{"block": 1, "tokens": [np.array([3, 1]), np.array([0, 4])]}],
        "descriptors": [
            {"number": n, "name": name, "group": group, "kind": kind, "cycles": c, "bytes": 64, "text": "PRODUCT"}
            for n, (name, group, kind, c) in enumerate(STEPS)
        ],
    }  # fmt: skip


class Checker(HTMLParser):
    VOID = {"meta", "img", "br", "rect", "link", "input"}

    def __init__(self):
        super().__init__()
        self.stack, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        if tag not in self.VOID or (tag == "rect" and not self.get_starttag_text().endswith("/>")):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, f"</{tag}> at {self.getpos()}"


def render(values):
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 6, 6)).astype(np.uint8)
    return report.render(values, images)


def test_the_page_is_well_formed_and_loads_nothing(values):
    page, checker = render(values), Checker()
    checker.feed(page)
    assert not checker.stack and len(checker.sources) == 2
    assert all(source.startswith("data:image/png") for source in checker.sources)
    assert not re.search(r"https?:|@import|url\(", page)


def test_the_page_shows_the_numbers(values):
    page = render(values)
    for text in ("all 1,234 tensors", "50.0%", "2 kB", "&lt;tiny&gt;", "block 0", "75%", "1.2.3"):
        assert text in page, text
    assert page.count("<s>3</s>4") == 2 and "mismatches" not in page


def test_a_mismatch_is_on_top_of_the_page(values):
    page = render(values | {"mismatches": 7, "first_difference": "descriptor 5, l0_q, token 3"})
    assert "7 mismatches" in page and "descriptor 5, l0_q, token 3" in page


def test_timeline_adds_up(values):
    lines = report.timeline(values)
    assert lines["cycles"] == 105 and [r["cycles"] for r in lines["rows"]] == [10, 90, 5]
    kinds = {k["name"]: k for k in lines["kinds"]}
    assert kinds["q, k, v, proj"]["utilisation"] == 0.5 and kinds["experts"]["utilisation"] == 1.0
    assert sum(k["share"] for k in kinds.values()) == pytest.approx(1)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_the_image(channels):
    image = np.random.default_rng(1).integers(0, 256, (channels, 5, 7)).astype(np.uint8)
    raw = base64.b64decode(report.png(image).split(",", 1)[1])
    found = np.asarray(Image.open(io.BytesIO(raw)))
    assert (found.reshape(5, 7, channels).transpose(2, 0, 1) == image).all()
