"""What a result is judged by, as options: --deployed and --fail-if."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from nullspace_unlearn.cli.options import class_list, gathered

if TYPE_CHECKING:
    from nullspace_unlearn.evaluate.compare import Comparison, Lists
    from nullspace_unlearn.evaluate.verdict import Condition

FAILED = 3
"""Exit status where a condition of --fail-if holds."""


@dataclass(frozen=True)
class JudgeOptions:
    """The options of `judge_options`, as given."""

    deployed: str | None
    fail_if: tuple[str, ...]
    discard: bool

    def conditions(self, measured: bool) -> tuple[Condition, ...]:
        """The conditions of --fail-if.

        Args:
            measured: Whether there are images to measure on.

        Raises:
            ValueError: If one does not parse, or there is nothing to measure.
        """
        from nullspace_unlearn.evaluate.verdict import Condition

        found = tuple(Condition.read(text) for text in self.fail_if)
        if found and not measured:
            raise ValueError("--fail-if judges by what images show: give --data")
        if self.discard and not found:
            raise ValueError("--discard leaves out what --fail-if refuses: give --fail-if")
        return found

    def lists(self, stay: Sequence[str]) -> Lists:
        """The names that images choose from.

        Args:
            stay: Every name that stays.
        """
        from nullspace_unlearn.evaluate.compare import Lists

        return Lists(tuple(stay), tuple(class_list(self.deployed) or ()))


judge_options = gathered(
    "judge",
    JudgeOptions,
    click.option(
        "--deployed",
        metavar="A,B,C|FILE",
        help="The list of names that will be deployed: also how often images get a name from it.",
    ),
    click.option(
        "--fail-if",
        multiple=True,
        metavar="CONDITION",
        help="Exit 3 where a figure is so, as 'left>0.1' or 'cost>2'; the output is written.",
    ),
    click.option("--discard", is_flag=True, help="Write no output where --fail-if exits 3."),
)


def failed(conditions: Sequence[Condition], comparison: Comparison | None) -> list[str]:
    """The conditions that hold, in words.

    Args:
        conditions: From `JudgeOptions.conditions`.
        comparison: What was measured.
    """
    from nullspace_unlearn.evaluate.figures import FIGURES

    if comparison is None:
        return []
    after = comparison.figures["after"]
    return [
        f"{one}: {one.name} is {FIGURES[one.name].written(after[one.name])}"
        for one in conditions
        if one.holds(after)
    ]


def stop_if(refused: Sequence[str]) -> None:
    """Exit with `FAILED` where conditions hold, saying which.

    Args:
        refused: From `failed`.
    """
    if refused:
        click.echo("nsu: --fail-if " + "; ".join(refused), err=True)
        sys.exit(FAILED)
