"""Published files: fetched once into a folder, resumed where a transfer broke off, checked, and kept.

    name.part ── what is missing, by HTTP Range ──→ whole ── size, sha256 ──→ name

Proxies are those of the environment. A file that is there needs no network.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from tubelet.errors import ResourceError
from tubelet.progress import CancelToken, OnProgress, Ticker
from tubelet.progress_display import show_bar, show_lines

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["RemoteFile", "RetryPolicy", "cache_folder", "check_file", "fetch", "file_lock"]

_CHUNK_BYTES = 1 << 18
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Answers of HTTP that say nothing of the next attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One published file.

    Attributes:
        name: under which it is published and kept.
        url: http, https or file; "" where it can only be fetched by hand.
        sha256: of its bytes, hexadecimal, or the first digits of it; "" where none is published.
        size_bytes: None where it is not published.
        page: where a user finds it.
    """

    name: str
    url: str = ""
    sha256: str = ""
    size_bytes: int | None = None
    page: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long a download waits, and how often it tries."""

    timeout_s: float = 30.0
    """Of a connection, and of a silence within one."""
    attempts: int = 5
    """In a row that bring no new byte, before it gives up."""
    pause_s: float = 1.0
    """Before the second attempt; doubled before each further one, up to half a minute."""


class _BrokenError(Exception):
    """A transfer ended early; another attempt may go on."""


class _RefusedError(Exception):
    """The file cannot be had this way; another attempt would end alike."""


def cache_folder() -> Path:
    """Return the folder in which Tubelet keeps what it fetched: `$TUBELET_HOME`, or the system's place for caches."""
    if home := os.environ.get("TUBELET_HOME"):
        return Path(home).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "tubelet" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tubelet"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tubelet"


def fetch(
    file: RemoteFile,
    folder: Path,
    *,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
    patience: RetryPolicy | None = None,
) -> Path:
    """Return the path of a published file, downloading it if it is not in the folder.

    Several processes may ask for one file at a time: one fetches it, the others wait. What a broken transfer left is
    completed by the next call.

    Args:
        file: what is wanted.
        folder: where it is kept; made if it is not there.
        on_progress: called at most ten times a second and at the end; None: a bar or lines on the standard error.
        cancel: stops the download after the piece that it is at; the next call goes on there.
        patience: how long to wait and how often to try.

    Returns:
        The path, under the published name.

    Raises:
        ResourceError: it cannot be had, or is not what was published; the line says from where to where to carry it.
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
                if not path.is_file():  # else another process was first
                    with _shown(file, on_progress) as show:
                        ticker = Ticker(
                            show, unit="byte", total=file.size_bytes, label=file.name, cancel=cancel
                        )
                        _download(file, path, ticker, patience or RetryPolicy())
                    return path
        except OSError as error:
            reason = f"{error.strerror}: {error.filename or folder}"
            raise ResourceError(
                f"{file.name} cannot be kept ({reason}); set TUBELET_HOME to another folder"
            ) from error
    if fault := check_file(file, path):
        raise ResourceError(
            f"{path} {fault}; remove it, and it is fetched again, or give its path if it is meant"
        )
    return path


def check_file(file: RemoteFile, path: Path) -> str:
    """Compare a file with what was published of it; return what differs, or "" where nothing does."""
    size_bytes = path.stat().st_size
    if file.size_bytes is not None and size_bytes != file.size_bytes:
        return f"has {size_bytes} bytes, and {file.size_bytes} are published"
    if file.sha256:
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if not digest.startswith(file.sha256.lower()):
            return f"has sha256 {digest[:12]}…, and {file.sha256[:12]}… is published"
    return ""


def _download(file: RemoteFile, path: Path, ticker: Ticker, patience: RetryPolicy) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        if urlsplit(file.url).scheme not in ("http", "https", "file"):
            raise _RefusedError(f"{file.url} is not an address of http, https or file")
        resumed = part.is_file()
        _complete(file, part, ticker, patience)
        if resumed and check_file(file, part):  # perhaps the beginning was of another version
            part.unlink()
            _complete(file, part, ticker, patience)
        if fault := check_file(file, part):
            part.unlink()
            raise _RefusedError(f"what arrived {fault}: deleted")
    except (_BrokenError, _RefusedError) as error:
        raise ResourceError(
            f"{file.name} could not be downloaded ({error}); try again, or fetch it by hand: "
            f"from {file.url} into {path.parent}"
        ) from error
    ticker.finish()
    part.replace(path)


def _complete(file: RemoteFile, part: Path, ticker: Ticker, patience: RetryPolicy) -> None:
    """Try until all is there; _BrokenError after too many attempts in a row that brought nothing."""
    failed_attempts = 0
    while True:
        before = _size(part)
        try:
            _attempt(file, part, ticker, patience.timeout_s)
            return
        except _BrokenError:
            failed_attempts = 1 if _size(part) > before else failed_attempts + 1
            if failed_attempts >= patience.attempts:
                raise
        time.sleep(min(patience.pause_s * 2 ** (failed_attempts - 1), 30.0))


def _attempt(file: RemoteFile, part: Path, ticker: Ticker, timeout_s: float) -> None:
    """Ask once for what is missing, and append it."""
    have = _size(part)
    ticker.done = have
    if have and have == file.size_bytes:
        return
    headers = {"User-Agent": "tubelet", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with _open(Request(file.url, headers=headers), part, timeout_s) as response:
        have, total = _placed(response, have)
        if total is not None and file.size_bytes not in (None, total):
            raise _RefusedError(
                f"the server has {total} bytes, and {file.size_bytes} are published"
            )
        if (response.headers.get_content_type() or "") == "text/html" and urlsplit(
            file.url
        ).scheme != "file":
            raise _RefusedError("the server answered with a web page, not with the file")
        with part.open("ab" if have else "wb") as sink:
            ticker.done = have
            ticker.total = total
            ticker.report()
            for chunk in _chunks(response):
                sink.write(chunk)
                have += len(chunk)
                ticker.tick(len(chunk))
    if total is not None and have < total:
        raise _BrokenError(f"the connection ended after {have} of {total} bytes")


def _open(request: Request, part: Path, timeout_s: float) -> Any:
    """Send a request; the answer is a context manager."""
    try:
        return build_opener().open(
            request, timeout=timeout_s
        )  # anew: it reads the proxies of the environment
    except HTTPError as error:
        with error:
            reason = f"HTTP {error.code} {error.reason}"
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.is_file():
            part.unlink()  # it holds more than there is
            raise _BrokenError(reason) from error
        raise (_BrokenError if error.code in _TRY_AGAIN else _RefusedError)(reason) from error
    except URLError as error:
        again = isinstance(error.reason, TimeoutError | ConnectionResetError | ssl.SSLEOFError)
        raise (_BrokenError if again else _RefusedError)(_reason(error.reason)) from error
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _BrokenError(_reason(error)) from error


def _reason(error: object) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()) or type(error).__name__


def _placed(response: Any, have: int) -> tuple[int, int | None]:
    """Return where the answer begins, which is 0 unless the server took the range, and the size of the whole."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        place, _, total = (
            response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        )
        if place.split("-")[0] != str(have):
            raise _RefusedError(f"the server sent the bytes {place}, not those from {have} on")
        return have, int(total) if total.isdecimal() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _chunks(response: Any) -> Generator[bytes]:
    while True:
        try:
            chunk = cast(bytes, response.read1(_CHUNK_BYTES))  # what is there, before a silence too
        except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
            raise _BrokenError(_reason(error)) from error
        if not chunk:
            return
        yield chunk


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextmanager
def file_lock(path: Path) -> Generator[None]:
    """Keep other processes, and other threads, out until the block ends; the file is gone afterwards."""
    while True:
        with path.open("a+b") as handle:
            _lock(handle)
            try:
                current = os.path.samestat(os.fstat(handle.fileno()), path.stat())
            except FileNotFoundError:
                current = False  # the one before removed it, and its lock with it
            if current:
                try:
                    yield
                finally:
                    with suppress(OSError):
                        path.unlink()
                return


def _lock(handle: IO[bytes]) -> None:
    if sys.platform != "win32":
        fcntl.flock(handle, fcntl.LOCK_EX)
        return
    while True:
        with suppress(OSError):
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
            return
        time.sleep(0.2)


@contextmanager
def _shown(file: RemoteFile, on_progress: OnProgress | None) -> Generator[OnProgress]:
    """Yield what reports the progress: the caller's function, a bar on a terminal, or lines."""
    if on_progress is not None:
        yield on_progress
    elif sys.stderr.isatty():
        with show_bar(file.name) as show:
            yield show
    else:
        sys.stderr.write(f"downloading {file.name} from {file.url}\n")
        yield show_lines()
