"""Take runnerstream's commands over HTTP: the other side of ``runnerstream executor --via hook``.

    python examples/dispatcher_hook.py 8090 secret.txt books.json

``secret.txt`` is the executor's --secret-file. ``books.json`` stands for the books of a dispatcher:
``{"claims": {"github:github.com:4711": "lease-1"}}``, the claim that each job has now. Replace
``Books`` with yours; keep the order of the checks, which is what makes a command safe:

1. the signature, in constant time: anybody can reach an address;
2. the key: a command that was answered gets the same answer again, and nothing is done twice;
3. the time: an expired command is refused;
4. the fence: the claim must still be the one that was judged;
5. the books are changed, and with them the answer is kept, in one step.

Answers: 200 done; 409 refused, the fence does not match; 422 this can never be done here. Anything
else makes the executor try again until the command expires. Standard library only.
"""

import hashlib
import hmac
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: Commands are small; what is larger is none.
MOST_BYTES = 1 << 20

Answer = tuple[int, dict[str, str]]


class Books:
    """Claims by job, and the answers given; both in one file, replaced in one step."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        found = json.loads(file.read_text()) if file.exists() else {}
        self.claims: dict[str, str] = found.get("claims", {})
        #: Jobs for which a runner is wanted.
        self.wanted: list[str] = found.get("wanted", [])
        self.answers: dict[str, list] = found.get("answers", {})

    def execute(self, key: str, command: dict) -> Answer:
        """Do a command once; the answer. The same key gets the same answer."""
        with self._lock:
            if key in self.answers:
                code, said = self.answers[key]
                return code, said
            answer = self._do(command)
            # Keys of a day are enough: commands expire within minutes. Forget older ones.
            self.answers[key] = list(answer)
            self._save()
            return answer

    def _do(self, command: dict) -> Answer:
        if command["expires_at"] <= time.time() * 1000:
            return 409, {"result": "refused", "reason": "expired"}
        kind, job, judged = command["command"], command["job_key"], command["fence"]["claim"]
        if kind == "wake_fleet":
            return 200, {"result": "done", "reason": "looked_for_work"}
        # An empty claim says that there was none: then there must be none now.
        if self.claims.get(job, "") != judged:
            return 409, {"result": "refused", "reason": "claim_changed"}
        if kind in ("release_claim", "close"):
            self.claims.pop(job, None)
        elif kind == "requeue":
            self.claims.pop(job, None)
            if job not in self.wanted:
                self.wanted.append(job)
        else:
            return 422, {"result": "cannot", "reason": f"no_{kind}"}
        return 200, {"result": "done"}

    def _save(self) -> None:
        found = {"claims": self.claims, "wanted": self.wanted, "answers": self.answers}
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(found))
        new.replace(self._file)


def signed(body: bytes, given: str, secret: bytes) -> bool:
    """Whether the secret signed these bytes. Takes as long for a wrong signature as for any."""
    made = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(made.encode(), given.encode("utf-8", "replace"))


def handler(books: Books, secret: bytes) -> type[BaseHTTPRequestHandler]:
    """The HTTP side."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            size = self.headers.get("Content-Length", "")
            if not size.isdecimal() or int(size) > MOST_BYTES:
                return self.answer(413, {"error": "no Content-Length, or too large"})
            body = self.rfile.read(int(size))
            if not signed(body, self.headers.get("X-Runnerstream-Signature-256", ""), secret):
                return self.answer(401, {"error": "the signature is not of this body"})
            key = self.headers.get("Idempotency-Key", "")
            try:
                if not key:
                    raise ValueError("no Idempotency-Key")
                code, said = books.execute(key, json.loads(body))
            except (ValueError, KeyError, TypeError) as error:
                return self.answer(422, {"result": "cannot", "reason": f"malformed: {error}"})
            return self.answer(code, said)

        def answer(self, code: int, said: dict[str, str]) -> None:
            body = json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main(port: str, secret_file: str, books_file: str) -> None:
    """Serve until interrupted. Put TLS in front of it where others can listen."""
    secret = Path(secret_file).read_bytes().strip()
    if not secret:
        sys.exit(f"{secret_file} is empty: anybody could sign")
    books = Books(Path(books_file))
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), handler(books, secret))
    print(f"http://127.0.0.1:{server.server_address[1]}/", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main(*sys.argv[1:])
