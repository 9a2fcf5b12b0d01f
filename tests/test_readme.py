"""The README's session does what it shows, and the files that it names are there."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_session() -> None:
    session = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert session
    test = doctest.DocTestParser().get_doctest(session[1], {}, "README.md", "README.md", 0)
    assert len(test.examples) > 8
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(test).failed == 0


def test_links() -> None:
    links = re.findall(r"\]\(([\w/.-]+)\)", README)
    assert len(links) > 8 and any(link.startswith("bench/results/") for link in links)
    assert [link for link in links if not (ROOT / link).exists()] == []
