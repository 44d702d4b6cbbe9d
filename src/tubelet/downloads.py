"""Download published files into a folder: once, resumed after an interruption, and verified.

    name.part ── missing bytes by HTTP Range ──→ complete ── size, sha256 ──→ name

Proxies are taken from the environment. A file that is in the folder needs no network.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from tubelet.errors import ResourceError, error_text
from tubelet.files import file_lock
from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.progress_display import show_bar, show_lines

__all__ = ["RemoteFile", "RetryPolicy", "cache_folder", "check_file", "fetch"]

_CHUNK_BYTES = 1 << 18
_MAX_PAUSE_S = 30.0
_TEMPORARY_STATUS_CODES = (408, 425, 429, 500, 502, 503, 504)
"""HTTP errors after which another attempt may succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A published file.

    Attributes:
        name: Name of the published file and of its local copy.
        url: http, https or file URL; "" if the file can only be downloaded by hand.
        sha256: Hexadecimal SHA-256, or its first digits; "" if none is published.
        size_bytes: Size in bytes; None if it is not published.
        page: Web page on which a user finds the file.
    """

    name: str
    url: str = ""
    sha256: str = ""
    size_bytes: int | None = None
    page: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long a download waits, and how often it tries again."""

    timeout_s: float = 30.0
    """Timeout of a connection attempt, and of a pause in a transfer."""
    attempts: int = 5
    """Consecutive attempts without a new byte before the download fails."""
    pause_s: float = 1.0
    """Pause before the second attempt; doubled before each further one, up to half a minute."""


class _BrokenError(Exception):
    """A transfer ended early; another attempt may continue it."""


class _RefusedError(Exception):
    """The file is not available at this URL; another attempt would fail, too."""


def cache_folder() -> Path:
    """Return the folder for downloaded files.

    It is `$TUBELET_HOME`, or the standard cache folder of the operating system.
    """
    home = os.environ.get("TUBELET_HOME")
    if home:
        return Path(home).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        base = Path(local) if local else Path.home() / "AppData" / "Local"
        return base / "tubelet" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tubelet"
    cache = os.environ.get("XDG_CACHE_HOME")
    base = Path(cache) if cache else Path.home() / ".cache"
    return base / "tubelet"


def fetch(
    file: RemoteFile,
    folder: Path,
    *,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
    retry_policy: RetryPolicy | None = None,
) -> Path:
    """Return the path of a published file, and download it first if it is not in the folder.

    Several processes may request the same file at the same time: one downloads it, the others wait.
    An interrupted download is resumed by the next call.

    Args:
        file: Published file.
        folder: Folder of the local copy; it is created if necessary.
        on_progress: Called up to ten times a second and at the end; None shows a bar or lines on
            the standard error.
        cancel: Stops the download after the current chunk; the next call resumes it.
        retry_policy: Timeouts and number of attempts.

    Returns:
        The path, under the published name.

    Raises:
        ResourceError: The file is not available, or differs from the published one; the message
            names the URL and the folder for a download by hand.
        Cancelled: `cancel` was cancelled.
    """
    path = folder / file.name
    if not path.is_file():
        if not file.url:
            raise ResourceError(
                f"{file.name} must be fetched by hand: from {file.page} into {folder}"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with file_lock(folder / f".{file.name}.lock"):
                # Another process may have downloaded it while this one waited for the lock.
                if not path.is_file():
                    _download(file, path, on_progress, cancel, retry_policy or RetryPolicy())
                    return path
        except OSError as error:
            reason = f"{error.strerror}: {error.filename or folder}"
            raise ResourceError(
                f"{file.name} cannot be kept ({reason}); set TUBELET_HOME to another folder"
            ) from error

    # It may be a file of the same name from another source.
    fault = check_file(file, path)
    if fault:
        raise ResourceError(
            f"{path} {fault}; remove it, and it is fetched again, or give its path if it is meant"
        )
    return path


def check_file(file: RemoteFile, path: Path) -> str:
    """Compare a local file with the published one; return the difference, "" if there is none."""
    size_bytes = path.stat().st_size
    # A publisher may give neither the size nor the hash.
    if file.size_bytes not in (None, size_bytes):
        return f"has {size_bytes} bytes, and {file.size_bytes} are published"
    if not file.sha256:
        return ""
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    # Some publishers give only the first digits.
    if digest.startswith(file.sha256.lower()):
        return ""
    return f"has sha256 {digest[:12]}…, and {file.sha256[:12]}… is published"


def _download(
    file: RemoteFile,
    path: Path,
    on_progress: OnProgress | None,
    cancel: CancelToken | None,
    retry_policy: RetryPolicy,
) -> None:
    """Download a file, and show the progress."""
    with _progress_display(file, on_progress) as show:
        ticker = Ticker(
            show,
            unit="byte",
            total=file.size_bytes,
            label=file.name,
            cancel=cancel,
        )
        part = path.with_name(f"{path.name}.part")
        try:
            _download_part(file, part, ticker, retry_policy)
        except (_BrokenError, _RefusedError) as error:
            raise ResourceError(
                f"{file.name} could not be downloaded ({error}); try again, or fetch it by hand: "
                f"from {file.url} into {path.parent}"
            ) from error
        ticker.finish()
        part.replace(path)


def _download_part(
    file: RemoteFile,
    part: Path,
    ticker: Ticker,
    retry_policy: RetryPolicy,
) -> None:
    """Complete the partial file, and verify it."""
    if urlsplit(file.url).scheme not in ("http", "https", "file"):
        raise _RefusedError(f"{file.url} is not an address of http, https or file")
    is_resumed = part.is_file()
    _complete(file, part, ticker, retry_policy)
    if is_resumed and check_file(file, part):
        # The first bytes may be of another version of the file: start again.
        part.unlink()
        _complete(file, part, ticker, retry_policy)
    fault = check_file(file, part)
    if fault:
        part.unlink()
        raise _RefusedError(f"what arrived {fault}: deleted")


def _complete(
    file: RemoteFile,
    part: Path,
    ticker: Ticker,
    retry_policy: RetryPolicy,
) -> None:
    """Try until the partial file is complete.

    Raises:
        _BrokenError: Too many consecutive attempts brought no new byte.
    """
    failed_attempts = 0
    while True:
        size_before = _size(part)
        try:
            _attempt(file, part, ticker, retry_policy.timeout_s)
            return
        except _BrokenError:
            failed_attempts += 1
            # After new bytes, the count starts again.
            if _size(part) > size_before:
                failed_attempts = 1
            if failed_attempts >= retry_policy.attempts:
                raise
        pause_s = retry_policy.pause_s * 2 ** (failed_attempts - 1)
        time.sleep(min(pause_s, _MAX_PAUSE_S))


def _attempt(
    file: RemoteFile,
    part: Path,
    ticker: Ticker,
    timeout_s: float,
) -> None:
    """Request the missing bytes once, and append them to the partial file."""
    size = _size(part)
    ticker.done = size
    if size and size == file.size_bytes:
        return
    headers = {"User-Agent": "tubelet", "Accept-Encoding": "identity"}
    if size:
        headers["Range"] = f"bytes={size}-"
    request = Request(file.url, headers=headers)
    with _open(request, part, timeout_s) as response:
        # A server without ranges sends the whole file again.
        size, total = _response_range(response, size)
        _check_response(file, response, total)
        mode = "wb"
        if size:
            # The response continues the bytes of earlier attempts.
            mode = "ab"
        with part.open(mode) as sink:
            ticker.done = size
            ticker.total = total
            ticker.report()
            for chunk in _chunks(response):
                sink.write(chunk)
                size += len(chunk)
                ticker.tick(len(chunk))
    if total is not None and size < total:
        raise _BrokenError(f"the connection ended after {size} of {total} bytes")


def _check_response(file: RemoteFile, response: Any, total: int | None) -> None:
    """Check that a response carries the published file."""
    # Either size may be unknown; then there is nothing to compare.
    sizes_bytes = {total, file.size_bytes} - {None}
    if len(sizes_bytes) > 1:
        raise _RefusedError(f"the server has {total} bytes, and {file.size_bytes} are published")
    # Servers answer with an error page or a login form in place of a file. A file URL names the
    # file itself.
    is_web_page = response.headers.get_content_type() == "text/html"
    is_local = urlsplit(file.url).scheme == "file"
    if is_web_page and not is_local:
        raise _RefusedError("the server answered with a web page, not with the file")


def _open(request: Request, part: Path, timeout_s: float) -> Any:
    """Send a request and return the response, a context manager."""
    # A new opener for each request reads the proxies of the environment again.
    opener = build_opener()
    try:
        return opener.open(request, timeout=timeout_s)
    except HTTPError as error:
        with error:
            reason = f"HTTP {error.code} {error.reason}"
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.is_file():
            # The partial file is larger than the published one: start again.
            part.unlink()
            raise _BrokenError(reason) from error
        if error.code in _TEMPORARY_STATUS_CODES:
            raise _BrokenError(reason) from error
        raise _RefusedError(reason) from error
    except URLError as error:
        reason = _one_line(error.reason)
        if isinstance(error.reason, TimeoutError | ConnectionResetError | ssl.SSLEOFError):
            raise _BrokenError(reason) from error
        raise _RefusedError(reason) from error
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _BrokenError(_one_line(error)) from error


def _one_line(error: object) -> str:
    """Return the message of an error on one line."""
    message = " ".join(error_text(error).split())
    # Some errors have no message.
    return message or type(error).__name__


def _response_range(response: Any, offset: int) -> tuple[int, int | None]:
    """Return the first byte of a response and the size of the whole file, None if unknown.

    The first byte is `offset`, or 0 if the server ignored the requested range.
    """
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        length = response.headers.get("Content-Length", "")
        return 0, _parse_size(length)
    # "bytes 1000-1999/2000"
    content_range = response.headers.get("Content-Range", "").removeprefix("bytes ")
    span, _, total = content_range.partition("/")
    first_byte = span.split("-")[0]
    if first_byte != str(offset):
        raise _RefusedError(f"the server sent the bytes {span}, not those from {offset} on")
    return offset, _parse_size(total)


def _parse_size(text: str) -> int | None:
    """Read a size in bytes from a header; None if it is absent, or "*" for an unknown size."""
    if not text.isdecimal():
        return None
    return int(text)


def _chunks(response: Any) -> Generator[bytes]:
    """Yield the bytes of a response."""
    while True:
        try:
            # read1 returns the bytes that arrived, also if a timeout follows.
            chunk = cast(bytes, response.read1(_CHUNK_BYTES))
        except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
            raise _BrokenError(_one_line(error)) from error
        if not chunk:
            return
        yield chunk


def _size(path: Path) -> int:
    # The first attempt creates the file.
    if not path.is_file():
        return 0
    return path.stat().st_size


@contextmanager
def _progress_display(file: RemoteFile, on_progress: OnProgress | None) -> Generator[OnProgress]:
    """Yield the function that shows the progress: the caller's, a bar on a terminal, or lines."""
    if on_progress is not None:
        yield on_progress
    elif sys.stderr.isatty():
        with show_bar(file.name) as show:
            yield show
    else:
        sys.stderr.write(f"downloading {file.name} from {file.url}\n")
        yield show_lines()
