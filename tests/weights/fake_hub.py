"""The part of the Hugging Face hub's API that publishing and reading weights use."""

import base64
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """A hub on this machine, with its repositories' files in memory.

    Attributes:
        files: repository -> path -> contents.
        created: what creating repositories was asked with.
        status: of every answer, where not 200.
    """

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.created: list[dict] = []
        self.messages: list[str] = []
        self.status = 200
        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), _make_handler(self)
        )
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Ends the server."""
        self._server.shutdown()
        self._server.server_close()


def _make_handler(hub: FakeHub) -> type:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, body: bytes, headers: dict[str, str]):
            self.send_response(hub.status)
            for name, value in {
                "Content-Length": str(len(body)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer_json(self, found):
            kind = {"Content-Type": "application/json", "X-Repo-Commit": COMMIT}
            self.answer(json.dumps(found).encode(), kind)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            parts = unquote(self.path).split("/")
            if hub.status != 200:
                return self.answer_json({"error": "no"})
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                hub.created.append(asked)
                name = f"{asked.get('organization', 'me')}/{asked['name']}"
                hub.files.setdefault(name, {})
                return self.answer_json({"url": f"{hub.endpoint}/{name}"})
            if "preupload" in parts:
                paths = [file["path"] for file in json.loads(body)["files"]]
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                return self.answer_json({"files": [{"path": p} | modes for p in paths]})
            if "commit" in parts:
                repo = "/".join(parts[3:5])
                self.take_commit(repo, body.decode())
                found = {
                    "commitUrl": f"{hub.endpoint}/{repo}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                }
                return self.answer_json({**found, "pullRequestUrl": None})
            return self.answer_json({})  # yaml of the card is fine

        def take_commit(self, repo: str, body: str):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    hub.messages.append(value["summary"])
                elif line["key"] == "deletedFile":
                    del hub.files[repo][value["path"]]
                elif line["key"] == "file":
                    contents = base64.b64decode(value["content"])
                    hub.files[repo][value["path"]] = contents

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            parts = unquote(self.path.partition("?")[0]).split("/")
            if hub.status != 200:
                return self.answer_json({"error": "no"})
            if parts[1] == "api":
                files = hub.files.get("/".join(parts[3:5]), {})
                if "tree" in parts:
                    return self.answer_json(
                        [self.entry(p, x) for p, x in files.items()]
                    )
                siblings = [{"rfilename": path} for path in files]
                return self.answer_json(
                    {"id": "x", "sha": COMMIT, "siblings": siblings}
                )
            contents = hub.files["/".join(parts[1:3])]["/".join(parts[5:])]
            tag = {"ETag": f'"{hashlib.sha1(contents).hexdigest()}"'}
            return self.answer(contents, {**tag, "X-Repo-Commit": COMMIT})

        def entry(self, path: str, contents: bytes) -> dict:
            oid = hashlib.sha1(contents).hexdigest()
            return {"type": "file", "path": path, "size": len(contents), "oid": oid}

    return Handler
