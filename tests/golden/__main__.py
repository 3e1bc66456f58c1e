"""Writes the golden text of every experiment: python -m tests.golden"""

from research.experiment import describe, load
from tests.test_experiments import FILES, GOLDEN, golden_of

for stale in GOLDEN.rglob("*.txt"):
    stale.unlink()
for path in FILES:
    golden = golden_of(path)
    golden.parent.mkdir(parents=True, exist_ok=True)
    golden.write_text(describe(load(str(path))))
    print(golden.relative_to(GOLDEN))
