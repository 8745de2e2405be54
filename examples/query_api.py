"""Ask a worker where jobs are, over its JSON. Standard library only.

    python examples/query_api.py http://localhost:6066                  all live jobs
    python examples/query_api.py http://localhost:6066 fleet=linux age=600
    python examples/query_api.py http://localhost:6066 state=any repo=acme/shop

One line a job, the longest in its state first: age in seconds (or -), status, fleet, key. Any
worker answers for all. Exit code 1 when a part of the group did not answer: then some are missing.
"""

import json
import sys
from collections.abc import Iterator
from urllib.parse import urlencode
from urllib.request import Request, urlopen


def pages(url: str, wanted: dict[str, str]) -> Iterator[dict]:
    """Every page of ``/jobs``: ``next`` of an answer is the ``cursor`` of the next page."""
    asked = {"limit": "500", **wanted}
    while True:
        request = Request(f"{url}/jobs?{urlencode(asked)}", headers={"Accept": "application/json"})
        with urlopen(request, timeout=30) as response:
            page = json.load(response)
        yield page
        if page["next"] is None:
            return
        asked["cursor"] = page["next"]


def main(url: str, *filters: str) -> int:
    """Print the jobs; the exit code."""
    wanted = dict(each.split("=", 1) for each in filters)
    incomplete = False
    for page in pages(url.rstrip("/"), wanted):
        incomplete = incomplete or bool(page["incomplete"])
        for job in page["jobs"]:
            # Nobody told when it entered its state: unknown is not zero.
            age = "-" if job["age_ms"] is None else f"{job['age_ms'] / 1000:.0f}"
            print(f"{age:>8}  {job['status']:<10} {job['fleet']:<24} {job['key']}")
    return 1 if incomplete else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
