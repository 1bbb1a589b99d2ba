"""What a campaign counts: tries, what was lost, and how to do it again."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Order:
    """What to do: `count` tries of the cases with `only` in their names, until a time of `time.monotonic`.

    seed: of the numbers that tell each try what to do; number: one such, to repeat what was lost.
    """

    count: int
    seed: int = 0
    only: str | None = None
    until: float = float("inf")
    number: int | None = None

    def chosen(self, cases: list) -> list:
        """Those of cases, which have names, that are asked for. ValueError if there are none."""
        chosen = [case for case in cases if self.only is None or self.only in case.name]
        if not chosen:
            raise ValueError(f"--only {self.only}: there are {', '.join(case.name for case in cases)}")
        return chosen

    def numbers(self) -> Iterator[int]:
        generator = random.Random(self.seed)
        while True:
            number = generator.getrandbits(32)
            yield number if self.number is None else self.number

    def goes_on(self, done: int) -> bool:
        return done < self.count and time.monotonic() < self.until


@dataclass
class Tally:
    """kind: of campaign. unit: of what is counted. lost: a line for each failure, with the number that repeats it."""

    kind: str
    unit: str
    count: int = 0
    trials: int = 0
    by_case: Counter = field(default_factory=Counter)
    by_way: Counter = field(default_factory=Counter)
    lost: list[dict] = field(default_factory=list)

    def add(self, case: str, count: int, problems: list[str], repeat: str, ways: dict[str, int]) -> None:
        """One trial. ways: how often it was done in which way, or ended in which."""
        self.trials += 1
        self.count += count
        self.by_case[case] += count
        self.by_way.update(ways)
        if problems:
            self.lost.append({"case": case, "repeat": repeat, "problems": problems})
            print(f"LOST {repeat}: {'; '.join(problems[:4])}", file=sys.stderr, flush=True)

    def table(self) -> dict:
        return {
            self.unit: self.count,
            "trials": self.trials,
            "lost": len(self.lost),
            "by_case": dict(self.by_case),
            "by_way": dict(self.by_way),
            "failures": self.lost,
        }

    def summary(self) -> str:
        return f"{self.kind}: {self.count} {self.unit} in {self.trials} trials, {len(self.lost)} lost"
