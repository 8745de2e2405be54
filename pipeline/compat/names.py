"""Which systems' names can be served. Apart from their declarations, because settings need it."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator

#: In the order in which their metrics are served.
NAMES: Final = ("tuist", "act_runner", "gitea_runner", "stellaops", "gastown")


def names_of(told: Any) -> Any:
    """The names in a setting, comma-separated, each once and in our order.

    Raises ValueError for a name that is none.
    """
    given = told.split(",") if isinstance(told, str) else list(told)
    wanted = {str(name).strip() for name in given} - {""}
    unknown = sorted(wanted.difference(NAMES))
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} is no system whose names are served: write some of "
            f"{', '.join(NAMES)}, comma-separated"
        )
    return tuple(name for name in NAMES if name in wanted)


#: Such names, as a field of settings.
Names = Annotated[tuple[str, ...], BeforeValidator(names_of)]
