"""What a score is: a number, the protocol that it was taken under, and what it is read against.

Decides when two scores may be compared and what a gate is; how a number is computed is left to the scores' own files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Score:
    """One number about clips. Two of them mean something side by side only under one protocol."""

    name: str  # "SWD of clips"
    value: float
    protocol: str  # all that the number depends on beside the model: counts, sizes, data, seeds, networks
    better: str = "lower"  # or "higher"; "" where neither is
    spread: float | None = None  # standard deviation over runs
    baselines: Mapping[str, float] = field(default_factory=dict)  # what else gets how much under this protocol
    at_least: float | None = None  # the gate
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher", ""):
            raise ValueError(f"Score: expected better to be 'lower', 'higher' or '', got {self.better!r}")

    @property
    def gate(self) -> str:
        """The gate in words, empty where there is none."""
        bounds = [
            f"{sign} {bound:.3g}" for sign, bound in (("≥", self.at_least), ("≤", self.at_most)) if bound is not None
        ]
        return " and ".join(bounds)

    @property
    def passed(self) -> bool | None:
        """Whether the value is inside its gate; None where there is none. NaN never passes."""
        if not self.gate:
            return None
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= self.value <= high

    def beats(self, other: Score) -> bool:
        """Whether this is the better one of two comparable scores.

        Raises:
            ValueError: two different scores, a protocol that is not stated or not the same, no better side.
        """
        if self.name != other.name or not self.better or self.better != other.better:
            raise ValueError(
                f"Score.beats: expected the same score with a better side, got {self.name!r}, {other.name!r}"
            )
        if not self.protocol or self.protocol != other.protocol:
            raise ValueError(
                f"Score.beats: {self.name} can be compared under one stated protocol only, "
                f"got {self.protocol!r} and {other.protocol!r}"
            )
        return self.value < other.value if self.better == "lower" else self.value > other.value

    def to_json(self) -> dict[str, Any]:
        """What json.dump takes: a number that is not finite becomes None."""
        return {**_finite(asdict(self)), "passed": self.passed}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Score:
        """The inverse of `to_json`; None becomes NaN."""
        known = {name: entry[name] for name in cls.__dataclass_fields__ if name in entry}
        known["value"] = math.nan if known["value"] is None else known["value"]
        known["baselines"] = {k: math.nan if v is None else v for k, v in known.get("baselines", {}).items()}
        return cls(**known)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
