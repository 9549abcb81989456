"""Serves the page and its two calls over HTTP, for one person on this machine.

It uses the server of the standard library and serves three fixed routes, never a path. Any web page that a person has open can
send requests to a local port, so a call must come from our own page: its Host is an IP address or a name of this machine
(a foreign name that points here is refused), its body is JSON (which other origins may not send), and its Origin, if given, is
our own.
"""

import ipaddress
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline.common.errors import ConfigError, ProjectError
from pipeline.web.page import asset, content_policy, html_page
from training.play.game import Game, GameStart

_MAX_BODY = 1 << 14
_REQUEST_SECONDS = 30.0  # time limit for a request to arrive
_CLOSE_SECONDS = 3.0  # time limit for unfinished answers when the server stops
log = logging.getLogger(__name__)


class PlayServer(ThreadingHTTPServer):
    """HTTP server that listens after construction and answers in `serve_forever`.

    Args:
        game: The game behind the page.
        host: Address or name to listen on.
        port: Port to listen on; 0 = any free port.

    Raises:
        ConfigError: The address is not available.
    """

    daemon_threads = True

    def __init__(self, game: Game, host: str, port: int) -> None:
        self.game = game
        self._answering: set[threading.Thread] = set()
        self.names = {"localhost", host.lower(), socket.gethostname().lower()}
        self.page, self.policy = _page(game)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {host} port {port} ({error}): choose another --host or --port") from error

    def server_bind(self) -> None:
        """Binds without asking a name server for this machine's name."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        """URL of the page."""
        name = "localhost" if ipaddress.ip_address(self.server_name).is_unspecified else self.server_name
        return f"http://{f'[{name}]' if ':' in name else name}:{self.server_port}/"

    def knows(self, host: str) -> bool:
        """Returns whether a Host header means this server: an IP address, or one of its names."""
        name = host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdigit() else host
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self.names
        return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers a request in a thread that `server_close` waits for."""
        self._answering.add(threading.current_thread())
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._answering.discard(threading.current_thread())

    def server_close(self) -> None:
        """Stops listening and waits briefly for unfinished answers, because Python can abort if a thread outlives it."""
        super().server_close()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for thread in list(self._answering):
            thread.join(max(0.0, deadline - time.monotonic()))


class _Handler(BaseHTTPRequestHandler):
    server: PlayServer
    timeout = _REQUEST_SECONDS
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answers with the page."""
        if not self.server.knows(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server has another name")
        elif self.path == "/":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "not found")

    def do_POST(self) -> None:
        """Answers a call."""
        calls: dict[str, Callable[[object], Mapping[str, object]]] = {"/start": self._start, "/step": self._step}
        refusal = self._fault()
        if refusal is not None:
            self._refuse(*refusal)
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path not in calls:
            self._refuse(HTTPStatus.NOT_FOUND, "not found")
            return
        try:
            answer = calls[self.path](json.loads(body))
        except ProjectError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except (ValueError, RecursionError):
            self._refuse(HTTPStatus.BAD_REQUEST, "the body is not JSON")
        else:
            self._answer(HTTPStatus.OK, "application/json", json.dumps(answer, allow_nan=False).encode())

    def _start(self, body: object) -> Mapping[str, object]:
        return self.server.game.start(GameStart.read(body))

    def _step(self, body: object) -> Mapping[str, object]:
        if not isinstance(body, dict):
            raise ConfigError("a step must be an object with session and action")
        return self.server.game.step(body.get("session"), body.get("action"))

    def _fault(self) -> tuple[HTTPStatus, str] | None:
        """Returns why a call is refused, before its body is read; None if it is accepted."""
        host, length = self.headers.get("Host", ""), self.headers.get("Content-Length", "")
        if not self.server.knows(host):
            return HTTPStatus.MISDIRECTED_REQUEST, "this server has another name"
        if self.headers.get("Origin", f"http://{host}") != f"http://{host}":
            return HTTPStatus.FORBIDDEN, "calls must come from this server's own page"
        if self.headers.get_content_type() != "application/json":
            return HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a call must be JSON"
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            return HTTPStatus.LENGTH_REQUIRED, "a call must have a Content-Length"
        if len(length) > 9 or int(length) > _MAX_BODY:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the limit for a call is {_MAX_BODY} bytes"
        return None

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        # The unread body may follow on this connection, so close it.
        self.close_connection = True
        self._answer(status, "application/json", json.dumps({"error": reason}).encode())

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"{self.server.policy}; frame-ancestors 'none'",
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            **({"Connection": "close"} if self.close_connection else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """Returns the name in the Server header, without versions."""
        return "ivideogpt-play"

    def log_message(self, format: str, *args: Any) -> None:
        """Writes requests to the debug log."""
        log.debug(format, *args)


def _page(game: Game) -> tuple[bytes, str]:
    """Returns the page and its content policy."""
    # A `<` from an episode's name must not end the script.
    facts = json.dumps(game.describe(), allow_nan=False).replace("<", "\\u003c")
    script = f'"use strict";\nconst game = {facts};\n{asset("training.web", "play.js")}'
    body, style = asset("training.web", "play.html"), asset("training.web", "play.css")
    page = html_page("Play with a world model", body, style, script, ("connect-src 'self'",))
    return page, content_policy(script, "connect-src 'self'")
