"""The Python blocks of the documentation run, page by page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [page for page in sorted(DOCS.glob("*.md")) if "```python" in page.read_text(encoding="utf-8")]


def test_there_are_pages():
    names = ["alignment.md", "durations.md", "learning.md", "speech.md", "streaming.md"]
    assert [page.name for page in PAGES] == names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page):
    torch.manual_seed(0)
    space: dict = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S), 1):
        exec(compile(block, f"{page.name} block {number}", "exec"), space)
    if page.name == "learning.md":
        rates = space["hmm"].emission.rates
        assert rates.isfinite().all()
        assert rates.max() / rates.min() > 5
