"""A local W&B server, as small as wandb's client allows: it accepts every request and keeps only a list of them."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Handler(BaseHTTPRequestHandler):
    server: "Server"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path != "/graphql":
            return self._answer({})
        request = json.loads(body)
        name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        variables: dict[str, Any] = request.get("variables") or {}
        self.server.requests.append((name.group(1) if name else "", variables))
        project = {"id": "p", "name": "gridlstm", "entity": {"name": "me"}}
        bucket = {"id": "b", "name": variables.get("name"), "displayName": "", "config": "{}", "project": project}
        made = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": {"id": "a"}}}
        data = {
            "viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
            "project": {"bucket": None, "artifact": None},
            "model": {"bucket": None},
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "createRunFiles": {
                "runID": "b",
                "uploadHeaders": [],
                "files": [{"name": file, "uploadUrl": f"{self.server.url}/put"} for file in variables.get("files", [])],
            },
            "createArtifact": {"artifact": made},
            "upsertView": {"view": {"id": "v", "name": "nw-saved-v"}, "inserted": True},
        }
        return self._answer({"data": data})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self._answer({})

    def do_GET(self) -> None:
        self._answer({})

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Records every GraphQL operation in ``requests`` as (name, variables)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def of(self, name: str) -> list[dict[str, Any]]:
        return [variables for operation, variables in self.requests if operation == name]


@contextmanager
def server() -> Iterator[Server]:
    """Run a server until the end of the block."""
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()
