"""Where a job belongs, as an operator writes it: whose it is, and which fleet executes it.

One JSON object, both parts optional::

    {"accounts": {"4711": "acme-inc", "acme": "acme-inc", "git.example.com/acme": "acme-inc"},
     "fleets": [{"repo": "acme/*", "labels": ["gpu"], "fleet": "gpu"},
                {"repo": "acme/*", "fleet": "linux"}]}

**Account**: by the number of the GitHub App's installation first, by the owner of the repository
second (of one host, else of any). An owner can be renamed and its installation cannot.

**Fleet**: by the first rule that fits. ``repo`` is a pattern (``*``, ``?``, ``[...]``) for the
whole path, in any case; without it any repository fits. The job must ask for all of ``labels``, and
may ask for more. A dispatcher's pool wins over every rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

#: Answers that are remembered: each repository with each label set.
_REMEMBERED: Final = 10_000
_LIKE: Final = '{"repo": "acme/*", "labels": ["gpu"], "fleet": "gpu"}'


class _Rule(NamedTuple):
    repo: str
    labels: frozenset[str]
    fleet: str


class Routes:
    """Accounts and fleets by configuration. Raises ValueError for what cannot be one."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        unknown = sorted(set(told) - {"accounts", "fleets"})
        if unknown:
            raise ValueError(f"{unknown[0]!r} is neither accounts nor fleets")
        accounts, fleets = told.get("accounts", {}), told.get("fleets", [])
        if not isinstance(accounts, dict) or not all(
            isinstance(each, str) and each for each in (*accounts, *accounts.values())
        ):
            raise ValueError('accounts: expected an object such as {"4711": "a", "acme": "a"}')
        if not isinstance(fleets, list):
            raise ValueError(f"fleets: expected an array of rules such as {_LIKE}")
        self.accounts: Final = {name.lower(): account for name, account in accounts.items()}
        self.fleets: Final = tuple(_rule(each) for each in fleets)
        self._known: dict[tuple[str, tuple[str, ...]], str | None] = {}

    def account(self, installation: int, host: str, repo: str) -> str | None:
        """Whose a delivery is; None when nobody's. ``installation`` 0: not told."""
        found = self.accounts.get(str(installation)) if installation else None
        if found is None:
            owner = repo.partition("/")[0].lower()
            found = self.accounts.get(f"{host}/{owner}") or self.accounts.get(owner)
        return found

    def fleet(self, repo: str, labels: tuple[str, ...]) -> str | None:
        """The fleet of a job with these canonical labels; None when no rule fits."""
        where = repo, labels
        if where in self._known:
            return self._known[where]
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        asked, path = frozenset(labels), repo.lower()
        found = next(
            (rule.fleet for rule in self.fleets
             if rule.labels <= asked and fnmatchcase(path, rule.repo)),
            None,
        )  # fmt: skip
        self._known[where] = found
        return found


def _rule(told: Any) -> _Rule:
    if not isinstance(told, dict):
        raise ValueError(f"fleets: expected a rule such as {_LIKE}, not {told!r}")
    unknown = sorted(set(told) - {"repo", "labels", "fleet"})
    if unknown:
        raise ValueError(f"fleets: {unknown[0]!r} is not one of repo, labels, fleet")
    repo, labels, fleet = told.get("repo", "*"), told.get("labels", []), told.get("fleet")
    if not isinstance(fleet, str) or not fleet.strip():
        raise ValueError(f"fleets: a rule names its fleet, such as {_LIKE}")
    if not isinstance(repo, str) or not repo:
        raise ValueError(f"fleets: repo is {repo!r}, and no pattern such as acme/*")
    if (
        not isinstance(labels, Sequence)
        or isinstance(labels, str)
        or not all(isinstance(label, str) and label.strip() for label in labels)
    ):
        raise ValueError(f"fleets: labels is {labels!r}, and no array of labels")
    return _Rule(repo.lower(), frozenset(label.strip().lower() for label in labels), fleet.strip())
