"""The demo's tables into README and docs/benchmarks.md, after a change that moves a number:

make demo | tee demo.log
python tests/planish/refresh_tables.py demo.log
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACES = (  # page, the words before the table, which of the demo's tables
    ("README.md", "\n## Quality\n", 0),
    ("docs/benchmarks.md", "\nWith outlier channels:", 0),
    ("docs/benchmarks.md", "\nAs it was trained:", 1),
)
TABLE = re.compile(r"^\| recipe \|.*\n(?:\|.*\n)+", re.MULTILINE)


def refresh(page: str, words: str, table: str) -> None:
    """Replace the first table after these words."""
    path = ROOT / page
    before, found, after = path.read_text(encoding="utf-8").partition(words)
    if not found or not TABLE.search(after):
        raise SystemExit(f"{page}: no table after {words.strip()!r}")
    text = before + found + TABLE.sub(lambda _: table, after, count=1)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    tables = TABLE.findall(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for page, words, number in PLACES:
        refresh(page, words, tables[number])
