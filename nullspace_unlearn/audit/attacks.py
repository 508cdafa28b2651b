"""Every question of an audit, in the order in which they are asked."""

from __future__ import annotations

from nullspace_unlearn.audit.adversary import ADVERSARY
from nullspace_unlearn.audit.collateral import COLLATERAL
from nullspace_unlearn.audit.finetuning import FINETUNING
from nullspace_unlearn.audit.membership import MEMBERSHIP
from nullspace_unlearn.audit.names import NAMES
from nullspace_unlearn.audit.over_forgetting import OVER_FORGETTING
from nullspace_unlearn.audit.question import Question
from nullspace_unlearn.audit.relearning import RELEARNING
from nullspace_unlearn.audit.restoring import RESTORING
from nullspace_unlearn.audit.retention import RETENTION
from nullspace_unlearn.audit.search import SEARCH
from nullspace_unlearn.audit.several import SEVERAL
from nullspace_unlearn.audit.storage import STORAGE
from nullspace_unlearn.audit.yardstick import YARDSTICK

QUESTIONS: tuple[Question, ...] = (
    YARDSTICK,
    NAMES,
    SEARCH,
    OVER_FORGETTING,
    RETENTION,
    RELEARNING,
    FINETUNING,
    ADVERSARY,
    STORAGE,
    MEMBERSHIP,
    RESTORING,
    SEVERAL,
    COLLATERAL,
)


def chosen(only: tuple[str, ...] = (), quick: bool = False) -> tuple[Question, ...]:
    """Some of the questions.

    Args:
        only: Their names; empty: all.
        quick: Whether those that take long are left out; a question that is named is asked.

    Raises:
        ValueError: If there is no question of a name.
    """
    known = [question.name for question in QUESTIONS]
    for name in only:
        if name not in known:
            raise ValueError(f"there is no question {name!r}; allowed: {', '.join(known)}")
    return tuple(one for one in QUESTIONS if (one.name in only if only else one.quick or not quick))
