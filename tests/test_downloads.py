"""Downloads from a local server that truncates, corrupts, stalls and refuses."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tubelet.downloads import RemoteFile, RetryPolicy, cache_folder, fetch
from tubelet.errors import Cancelled, ResourceError
from tubelet.progress import CancelToken, Progress

CONTENT = bytes(range(256)) * 4000  # 1 MB: several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = RetryPolicy(timeout_s=0.3, attempts=3, pause_s=0.01)
Answer = Callable[["Handler", int], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each request with the next of the server's answers; the last one answers all that follow."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        server = self.server
        text = self.headers.get("Range", "bytes=0-")
        server.ranges.append(text)
        answer = server.answers[min(len(server.ranges), len(server.answers)) - 1]
        self.close_connection = True
        answer(self, int(text.removeprefix("bytes=").removesuffix("-")))

    def head(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    answers: list[Answer]
    ranges: list[str]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave early are part of the test."""


def whole(handler: Handler, start: int, content: bytes = CONTENT) -> None:
    if start >= len(content):
        return handler.head(416, 0, Content_Range=f"bytes */{len(content)}")
    if start:
        handler.head(
            206,
            len(content) - start,
            Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}",
        )
    else:
        handler.head(200, len(content))
    handler.wfile.write(content[start:])
    return None


def cut(after: int) -> Answer:
    """Promise all, and end the connection early."""

    def answer(handler: Handler, start: int) -> None:
        if start:
            last = len(CONTENT) - 1
            handler.head(
                206, len(CONTENT) - start, Content_Range=f"bytes {start}-{last}/{len(CONTENT)}"
            )
        else:
            handler.head(200, len(CONTENT))
        handler.wfile.write(CONTENT[start : start + after])

    return answer


def stall(handler: Handler, start: int) -> None:
    handler.head(200, len(CONTENT))
    handler.wfile.write(CONTENT[:1000])
    handler.wfile.flush()
    time.sleep(0.6)


def without_range(handler: Handler, start: int) -> None:
    whole(handler, 0)


def corrupt(handler: Handler, start: int) -> None:
    whole(handler, start, CONTENT[:-1] + b"?")


def status(code: int) -> Answer:
    return lambda handler, start: handler.head(code, 0)


def web_page(handler: Handler, start: int) -> None:
    handler.head(200, 12, Content_Type="text/html; charset=utf-8")
    handler.wfile.write(b"<html>hi<br>")


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.answers, made.ranges = [whole], []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def remote(server: Server, **changes: Any) -> RemoteFile:
    url = f"http://127.0.0.1:{server.server_address[1]}/weights.pth"
    return RemoteFile(
        **{
            "name": "weights.pth",
            "url": url,
            "sha256": SHA256,
            "size_bytes": len(CONTENT),
            **changes,
        }
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once_and_then_needs_no_network(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch(
        remote(server), tmp_path / "new", on_progress=lambda now: seen.append((now.done, now.total))
    )
    assert path.read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["weights.pth"]  # neither .part nor lock
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    assert fetch(remote(server), tmp_path / "new") == path
    assert len(server.ranges) == 1


def test_a_download_that_was_cancelled_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    token = CancelToken()

    def stop(now: Progress) -> None:
        if now.done:
            token.cancel()

    with pytest.raises(Cancelled):
        fetch(remote(server), tmp_path, on_progress=stop, cancel=token)
    assert names(tmp_path) == ["weights.pth.part"]
    assert 0 < (tmp_path / "weights.pth.part").stat().st_size <= len(CONTENT)
    assert fetch(remote(server), tmp_path, on_progress=lambda now: None).read_bytes() == CONTENT


@pytest.mark.parametrize("known", [{}, {"sha256": "", "size_bytes": None}], ids=["hash", "no hash"])
def test_a_truncated_transfer_goes_on_where_it_ended(
    server: Server, tmp_path: Path, known: dict[str, Any]
) -> None:
    server.answers = [cut(300_000), cut(300_000), cut(300_000), cut(1), whole]
    path = fetch(
        remote(server, **known), tmp_path, on_progress=lambda now: None, retry_policy=QUICK
    )
    assert path.read_bytes() == CONTENT
    assert server.ranges == [
        "bytes=0-",
        "bytes=300000-",
        "bytes=600000-",
        "bytes=900000-",
        "bytes=900001-",
    ]


def test_what_an_earlier_run_left_is_completed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.part").write_bytes(CONTENT[:500_000])
    assert fetch(remote(server), tmp_path, on_progress=lambda now: None).read_bytes() == CONTENT
    assert server.ranges == ["bytes=500000-"]


@pytest.mark.parametrize(
    ("left", "requests"),
    [
        (b"?" * 400_000, ["bytes=400000-", "bytes=0-"]),
        (CONTENT + b"?", ["bytes=1024001-", "bytes=0-"]),
        (CONTENT, []),
    ],
    ids=["of another version", "too long", "whole"],
)
def test_a_remainder_that_does_not_fit_is_fetched_anew(
    server: Server, tmp_path: Path, left: bytes, requests: list[str]
) -> None:
    (tmp_path / "weights.pth.part").write_bytes(left)
    assert (
        fetch(
            remote(server), tmp_path, on_progress=lambda now: None, retry_policy=QUICK
        ).read_bytes()
        == CONTENT
    )
    assert server.ranges == requests


def test_a_server_without_ranges_starts_anew(server: Server, tmp_path: Path) -> None:
    server.answers = [cut(300_000), without_range]
    assert (
        fetch(
            remote(server), tmp_path, on_progress=lambda now: None, retry_policy=QUICK
        ).read_bytes()
        == CONTENT
    )
    assert server.ranges == ["bytes=0-", "bytes=300000-"]


def test_a_remainder_is_asked_for_behind_a_redirection_too(server: Server, tmp_path: Path) -> None:
    def elsewhere(handler: Handler, start: int) -> None:
        handler.head(302, 0, Location="/assets/weights.pth")

    server.answers = [elsewhere, cut(300_000), elsewhere, whole]
    assert (
        fetch(
            remote(server), tmp_path, on_progress=lambda now: None, retry_policy=QUICK
        ).read_bytes()
        == CONTENT
    )
    assert server.ranges == ["bytes=0-", "bytes=0-", "bytes=300000-", "bytes=300000-"]


@pytest.mark.parametrize("code", [500, 503, 429])
def test_passing_faults_are_tried_again(server: Server, tmp_path: Path, code: int) -> None:
    server.answers = [status(code), status(code), whole]
    assert (
        fetch(
            remote(server), tmp_path, on_progress=lambda now: None, retry_policy=QUICK
        ).read_bytes()
        == CONTENT
    )


def test_a_silent_connection_is_given_up_and_resumed(server: Server, tmp_path: Path) -> None:
    server.answers = [stall, whole]
    assert (
        fetch(
            remote(server), tmp_path, on_progress=lambda now: None, retry_policy=QUICK
        ).read_bytes()
        == CONTENT
    )
    assert server.ranges == ["bytes=0-", "bytes=1000-"]


@pytest.mark.parametrize(
    ("answer", "reason", "requests"),
    [
        (status(404), "HTTP 404 Not Found", 1),
        (status(500), "HTTP 500", 3),
        (corrupt, "what arrived has sha256 .*: deleted", 1),
        (web_page, "the server has 12 bytes", 1),
        (cut(0), "the connection ended after 0 of 1024000 bytes", 3),
    ],
    ids=["404", "500", "corrupt", "page", "cut"],
)
def test_what_cannot_be_had_is_one_line(
    server: Server, tmp_path: Path, answer: Answer, reason: str, requests: int
) -> None:
    server.answers = [answer]
    file = remote(server)
    with pytest.raises(ResourceError, match=reason) as caught:
        fetch(file, tmp_path, on_progress=lambda now: None, retry_policy=QUICK)
    line = str(caught.value)
    assert "\n" not in line
    assert line.endswith(f"from {file.url} into {tmp_path}")
    assert len(server.ranges) == requests
    assert names(tmp_path) in ([], ["weights.pth.part"])
    assert not (tmp_path / "weights.pth").exists()


def test_a_web_page_is_not_kept_as_the_file(server: Server, tmp_path: Path) -> None:
    server.answers = [web_page]
    with pytest.raises(ResourceError, match="a web page, not with the file"):
        fetch(remote(server, sha256="", size_bytes=None), tmp_path, on_progress=lambda now: None)
    assert names(tmp_path) == []


def test_the_first_digits_of_a_hash_suffice(server: Server, tmp_path: Path) -> None:
    fetch(remote(server, sha256=SHA256[:8].upper()), tmp_path, on_progress=lambda now: None)
    with pytest.raises(ResourceError, match="has sha256"):
        fetch(
            remote(server, name="other.pth", sha256="0" * 8), tmp_path, on_progress=lambda now: None
        )
    assert names(tmp_path) == ["weights.pth"]


def test_another_file_of_the_same_name_is_not_taken_for_it(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"mine")
    with pytest.raises(ResourceError, match="has 4 bytes, and 1024000 are published; remove it"):
        fetch(remote(server), tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == b"mine"


def test_without_network_the_line_says_from_where_to_where(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.server_close()  # nobody listens at its port any more
    url = f"http://127.0.0.1:{server.server_address[1]}/w.pth"
    began_s = time.monotonic()
    with pytest.raises(
        ResourceError, match=r"Connection refused.* by hand: from http://127.* into "
    ):
        fetch(RemoteFile(name="w.pth", url=url), tmp_path, on_progress=lambda now: None)
    assert time.monotonic() - began_s < 0.5  # no use in trying again


def test_a_file_without_an_address_is_fetched_by_hand(tmp_path: Path) -> None:
    file = RemoteFile(name="w.pth", page="https://example.org/models")
    with pytest.raises(
        ResourceError, match=f"by hand: from https://example.org/models into {tmp_path}"
    ):
        fetch(file, tmp_path)
    (tmp_path / "w.pth").write_bytes(b"carried here")
    assert fetch(file, tmp_path).read_bytes() == b"carried here"


def test_files_of_this_machine_are_copied(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_bytes(CONTENT)
    file = RemoteFile(name="w.pth", url=(tmp_path / "page.html").as_uri(), sha256=SHA256)
    assert fetch(file, tmp_path / "cache", on_progress=lambda now: None).read_bytes() == CONTENT
    with pytest.raises(ResourceError, match=r"could not be downloaded \(.*No such file"):
        fetch(
            RemoteFile(name="x.pth", url=(tmp_path / "absent").as_uri()),
            tmp_path,
            on_progress=lambda now: None,
        )
    with pytest.raises(ResourceError, match="not an address of http, https or file"):
        fetch(
            RemoteFile(name="x.pth", url="ftp://example.org/x.pth"),
            tmp_path,
            on_progress=lambda now: None,
        )


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"cannot be kept \(.*set TUBELET_HOME"):
        fetch(RemoteFile(name="w.pth", url="file:///dev/null"), tmp_path / "file")


def test_processes_wait_for_each_other(server: Server, tmp_path: Path) -> None:
    def slow(handler: Handler, start: int) -> None:
        time.sleep(0.2)
        whole(handler, start)

    server.answers = [slow]
    url = remote(server).url
    script = (
        "import sys\nfrom pathlib import Path\nfrom tubelet.downloads import RemoteFile, fetch\n"
        f"fetch(RemoteFile(name='weights.pth', url={url!r}, sha256={SHA256!r}), Path(sys.argv[1]))\n"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.PIPE)
        for _ in "ab"
    ]
    threads = [threading.Thread(target=fetch, args=(remote(server), tmp_path)) for _ in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in others:
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert len(server.ranges) == 1
    assert names(tmp_path) == ["weights.pth"]


def test_proxies_of_the_environment_are_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    file = remote(server, url="http://models.invalid/weights.pth")  # only the proxy can know it
    assert fetch(file, tmp_path, on_progress=lambda now: None).read_bytes() == CONTENT


def test_progress_goes_to_the_standard_error(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tubelet.progress_display.LINE_INTERVAL_S", 0.0)
    fetch(remote(server), tmp_path)
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0] == f"downloading weights.pth from {remote(server).url}"
    assert "MB of 1.0, " in lines[-1]
    assert lines[-1].endswith(" s left")


def test_progress_is_a_bar_on_a_terminal(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    fetch(remote(server), tmp_path)
    said = capsys.readouterr()
    assert said.out == ""
    assert "weights.pth" in said.err
    assert "1.0/1.0 MB" in said.err


@pytest.mark.parametrize(
    ("set_to", "expected"),
    [
        ({"TUBELET_HOME": "/data/t", "XDG_CACHE_HOME": "/x"}, Path("/data/t")),
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/tubelet")),
        ({"TUBELET_HOME": "~/t"}, Path.home() / "t"),
        ({}, Path.home() / ".cache" / "tubelet"),
    ],
)
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="other systems keep caches elsewhere"
)
def test_the_cache_is_where_the_environment_says(
    set_to: dict[str, str], expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TUBELET_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == expected
    assert os.environ.get("TUBELET_HOME") == set_to.get("TUBELET_HOME")
