"""Measure what the gate lets through: simulated candidates that are a little worse, or better, by the truth.

``OMP_NUM_THREADS=1 python scripts/measure_gate.py`` from the root of the repository, some minutes; prints a table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from simulated_detectors import detect, scenes
from spica.training.gate import judge

RECALL = 0.85
IMAGES = (6, 10, 20, 50)
CHANGES = (-0.10, -0.05, -0.02, 0.0, 0.05)


def share_passed(images: int, change: float, times: int, resamples: int) -> tuple[float, float]:
    """Shares of candidates that pass, and for which it is called decided."""
    passed = decided = 0
    for seed in range(times):
        rng = np.random.default_rng([seed, images])
        truths = scenes(rng, images)
        active, candidate = detect(rng, truths, recall=RECALL), detect(rng, truths, recall=RECALL + change)
        verdict = judge(truths, active, candidate, ["ear"], threshold=0.5, resamples=resamples, seed=seed)
        passed += verdict.passed
        decided += verdict.decided
    return passed / times, decided / times


def main() -> None:
    """Print the table."""
    told = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    told.add_argument("--times", type=int, default=400, help="candidates for each number")
    told.add_argument("--resamples", type=int, default=400, help="of the bootstrap")
    given = told.parse_args()
    print(f"Share of {given.times} candidates that pass (in brackets: decided), by how many objects more they find")
    print("images held out  " + "  ".join(f"{change:+14.0%}" for change in CHANGES))
    for images in IMAGES:
        found = [share_passed(images, change, given.times, given.resamples) for change in CHANGES]
        print(f"{images:15}  " + "  ".join(f"{passed:6.1%} ({decided:5.0%})" for passed, decided in found), flush=True)


if __name__ == "__main__":
    main()
