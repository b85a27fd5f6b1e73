"""Finding and downloading enwik8 from a real HTTP server on the loopback interface, which serves a smaller file.

Every test uses a generated text, and also a real MediaWiki extract if GRIDLSTM_DATA names the directory that holds it.
"""

import bz2
import hashlib
import io
import os
import random
import resource
import signal
import socket
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock, Timeout
from tests.conftest import PATIENCE, compose, python
from tqdm import tqdm

from gridlstm.data.download import fetch, unzip_member
from gridlstm.data.enwik8 import Enwik8
from gridlstm.data.text import TextData
from gridlstm.data.text8 import Text8
from gridlstm.errors import UserError
from gridlstm.files import write_text
from gridlstm.training.build import check_types, unread_data

EXTRACT = "enwiki_xml_small/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


class Served(NamedTuple):
    """A stand-in for enwik8 and its zip archive."""

    text: bytes
    archive: bytes

    def options(self) -> dict[str, Any]:
        return {
            "zip_size": len(self.archive),
            "zip_sha256": hashlib.sha256(self.archive).hexdigest(),
            "size": len(self.text),
            "sha256": hashlib.sha256(self.text).hexdigest(),
        }


@pytest.fixture(autouse=True)
def own_progress_lock() -> None:
    """Give each test a new lock: a Ctrl-C at the wrong moment leaves tqdm's own lock, of two parts, unusable."""
    tqdm.set_lock(threading.RLock())


@pytest.fixture(scope="module", params=["MediaWiki extract", "generated"])
def served(request: pytest.FixtureRequest) -> Served:
    if request.param == "generated":
        # Noise does not compress well, so the archive is long enough to be cut in the middle of a transfer.
        text = bytes(random.Random(0).choices(range(32, 127), k=500_000))
    else:
        path = Path(os.environ.get("GRIDLSTM_DATA", "/nonexistent")) / EXTRACT
        if not path.is_file():
            pytest.skip(f"needs {EXTRACT} under the directory that GRIDLSTM_DATA names")
        text = bz2.decompress(path.read_bytes())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("enwik8", text)
    return Served(text, packed.getvalue())


class Server(ThreadingHTTPServer):
    """Serves one archive; the function ``behave`` determines how."""

    daemon_threads = True

    def __init__(self, archive: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive = archive
        self.behave: Callable[[Handler], None] = Handler.send_whole
        self.requests = 0
        self.url = f"http://127.0.0.1:{self.server_port}/enwik8.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.server.behave(self)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send_head(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.archive)))
        self.end_headers()

    def send_whole(self) -> None:
        self.send_head()
        self.wfile.write(self.server.archive)

    def send_half(self) -> None:
        """Send half of the archive and close the connection."""
        self.send_head()
        self.wfile.write(self.server.archive[: len(self.server.archive) // 2])

    def send_half_without_length(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.archive[: len(self.server.archive) // 2])

    def send_damaged(self) -> None:
        self.send_head()
        archive = bytearray(self.server.archive)
        archive[len(archive) // 2] ^= 1
        self.wfile.write(archive)

    def send_more(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.archive + b"more")

    def send_not_found(self) -> None:
        self.send_error(404)

    def send_nonsense(self) -> None:
        self.wfile.write(b"this is no HTTP\r\n\r\n")

    def send_half_then_press_ctrl_c(self) -> None:
        self.send_half()
        self.wfile.flush()
        os.kill(os.getpid(), signal.SIGINT)
        self.connection.settimeout(PATIENCE)
        self.rfile.read()  # keeps the connection open until the client closes it


@pytest.fixture
def server(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")  # a proxy would not reach our loopback
    running = Server(served.archive)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def make(data_dir: Path, served: Served, server: Server, **changes: Any) -> TextData:
    source = Enwik8(data_dir, **{**served.options(), "url": server.url, **changes})
    return TextData(source, 4, 1, stream_length=10_000, splits=(0.8, 0.1, 0.1), cache_dir=data_dir.parent / "cache")


def contents(directory: Path) -> list[str]:
    """Return the names of the files in a directory, except the lock."""
    if not directory.is_dir():
        return []
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".enwik8.lock")
    return sorted(str(file.relative_to(directory)) for file in files)


def check_recovers(data_dir: Path, served: Served, server: Server) -> None:
    """Check that the next run succeeds if the server works."""
    server.behave = Handler.send_whole
    data = make(data_dir, served, server)
    data.setup("fit")
    assert data.found.file.read_bytes() == served.text
    assert contents(data_dir) == ["enwik8"]


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """Make a directory that other users can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Forbid writing to a directory until the end of the block; root, who may write anywhere, becomes another user."""
    user = os.geteuid()
    directory.chmod(0o555)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        directory.chmod(0o755)


def test_the_genuine_file_is_the_default(tmp_path: Path) -> None:
    source = Enwik8(tmp_path)
    assert source.url == "http://mattmahoney.net/dc/enwik8.zip"
    assert (source.zip_size, source.size) == (36_445_475, 100_000_000)
    assert source.zip_sha256 == "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"
    assert source.sha256 == "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"
    for name, test in (("paper", 5_000_000), ("graves2013", 4_000_000), ("mrnn2011", 10_000_000)):
        named = TextData(source, 100, 1, splits=name)
        assert (sum(named.splits), named.splits[2]) == (100_000_000, test)
    with pytest.raises(ValueError, match=r"^splits must be standard, paper, graves2013, mrnn2011, or three numbers"):
        TextData(source, 100, 1, splits="usual")


@pytest.mark.parametrize("task", ["enwik8", "text8"])
def test_the_task_has_the_papers_protocol(task: str) -> None:
    data = unread_data(compose(f"task={task}"))
    assert isinstance(data, TextData)
    assert (data.level, data.window, data.stream_length) == ("byte", 50, 10_000)
    assert data.splits == (90_000_000, 5_000_000, 5_000_000)


def test_null_stream_length_is_derived_from_the_text(data_dir: Path, served: Served, server: Server) -> None:
    for task in ("enwik8", "text8"):
        check_types(compose(f"task={task}", "task.data.stream_length=null").task, "task")
    source = make(data_dir, served, server).source
    data = TextData(source, 4, 1, splits=(0.8, 0.1, 0.1), cache_dir=data_dir.parent / "cache")
    assert data.stream_length == 10_000


def test_enwik8_is_downloaded_once_and_read(
    data_dir: Path, served: Served, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make(data_dir, served, server)
    data.setup("fit")
    assert data.found.file == data_dir / "enwik8"
    assert data.found.file.read_bytes() == served.text
    assert contents(data_dir) == ["enwik8"]
    assert data.spec.input_size == data.spec.output_size == len(set(served.text))
    assert data.corpus.vocabulary.decode(data.corpus.ids) == served.text.decode(errors="replace")
    inputs = next(iter(data.train_dataloader())).inputs
    assert inputs.shape == (4, 50)
    assert data.corpus.vocabulary.decode(inputs[0]).encode(errors="replace")[:10] in served.text
    assert "enwik8.zip: 100%" in capfd.readouterr().err
    make(data_dir, served, server).setup("fit")
    assert server.requests == 1


def test_nothing_is_downloaded_if_the_file_exists(data_dir: Path, served: Served, server: Server) -> None:
    for place in ("enwik8", "enwik8/enwik8", "enwik8.zip", "enwik8/enwik8.zip"):
        directory = data_dir / place.replace("/", "-")
        path = directory / place
        path.parent.mkdir(parents=True)
        path.write_bytes(served.archive if place.endswith(".zip") else served.text)
        source = make(directory, served, server).found.file
        assert source.read_bytes() == served.text
        assert source == (path.with_suffix("") if place.endswith(".zip") else path)
    assert server.requests == 0


def test_named_file_or_archive_is_used(data_dir: Path, served: Served, server: Server) -> None:
    mine, packed = data_dir.parent / "mine.bin", data_dir.parent / "mine.zip"
    mine.write_bytes(served.text)
    packed.write_bytes(served.archive)
    assert make(data_dir, served, server, path=str(mine)).found.file == mine
    assert not data_dir.exists()
    source = make(data_dir, served, server, path=str(packed)).found.file
    assert source == data_dir / "enwik8"
    assert source.read_bytes() == served.text
    assert server.requests == 0


def test_a_trained_network_is_evaluated_on_any_text(
    data_dir: Path, tmp_path: Path, served: Served, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    state = make(data_dir, served, server).state_dict()
    other = tmp_path / "other.txt"
    other.write_bytes(served.text[:50])
    data = make(data_dir, served, server, path=other)
    data.test_on_all()
    data.load_state_dict(state)
    data.setup("test")
    assert sum(int(batch.loss_mask.sum()) for batch in data.test_dataloader()) == 49
    assert f"{other} is not enwik8: the results are for that text" in caplog.text


def test_named_file_with_other_content_is_refused(data_dir: Path, served: Served, server: Server) -> None:
    mine = data_dir.parent / "mine.txt"
    wrong = {
        "no such file": None,
        "11 bytes, expected": b"hello world",
        "SHA-256 .*, expected": bytes([served.text[0] ^ 1]) + served.text[1:],
    }
    for message, content in wrong.items():
        if content is not None:
            mine.write_bytes(content)
        with pytest.raises(UserError, match=rf"path={mine} is neither enwik8 .*{message}.* nor enwik8\.zip"):
            make(data_dir, served, server, path=mine).setup()
    assert server.requests == 0
    assert contents(data_dir) == []


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (Handler.send_half, r"ended after [\d,]+ of [\d,]+ expected bytes\. The connection was cut"),
        (Handler.send_half_without_length, r"ended after [\d,]+ of [\d,]+ expected bytes"),
        (Handler.send_damaged, "the SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}"),
        (Handler.send_more, r"more than the expected [\d,]+ bytes"),
        (Handler.send_not_found, "the server answered 404 Not Found"),
        (Handler.send_nonsense, "the transfer failed: BadStatusLine"),
    ],
)
def test_failed_download_reports_why_and_leaves_no_files(
    behave: Callable[[Handler], None], message: str, data_dir: Path, served: Served, server: Server
) -> None:
    server.behave = behave
    with pytest.raises(UserError, match=message) as caught:
        make(data_dir, served, server).setup("fit")
    # One message names every path that was tried and why it failed, where to put the file, and what works without it.
    text = str(caught.value)
    for place in (data_dir / "enwik8", data_dir / "enwik8.zip", data_dir / "enwik8" / "enwik8"):
        assert f"{place}: no such file" in text
    assert server.url in text
    assert f"into {data_dir}, or name it with" in text
    assert "task=memorization, or task=text with any text" in text
    assert contents(data_dir) == []
    check_recovers(data_dir, served, server)


def test_refused_connection_is_reported(data_dir: Path, served: Served, server: Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: a connection is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/enwik8.zip"
        with pytest.raises(UserError, match=r"cannot be reached: .*Connection refused.*\n.*or name it with"):
            make(data_dir, served, server, url=url).setup("fit")
    assert contents(data_dir) == []
    check_recovers(data_dir, served, server)


@pytest.mark.parametrize("url", ["mattmahoney.net/enwik8.zip", "nonsense://x/y"])
def test_invalid_url_is_refused(url: str, data_dir: Path, served: Served, server: Server) -> None:
    with pytest.raises(UserError, match=f"{url}: .*unknown url type"):
        make(data_dir, served, server, url=url).setup("fit")
    assert contents(data_dir) == []


def test_silent_server_times_out(data_dir: Path, served: Served, server: Server) -> None:
    def hang_in_the_middle(handler: Handler) -> None:
        handler.send_half()
        handler.wfile.flush()
        handler.rfile.read()  # until the client closes the connection

    def hang_at_once(handler: Handler) -> None:
        handler.rfile.read()

    for behave in (hang_in_the_middle, hang_at_once):
        server.behave = behave
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gridlstm.data.download.TIMEOUT", 0.2)
            with pytest.raises(UserError, match=r"no answer for 0\.2 seconds"):
                make(data_dir, served, server).setup("fit")
        assert contents(data_dir) == []
    check_recovers(data_dir, served, server)


def test_damaged_archive_is_refused(data_dir: Path, served: Served, server: Server) -> None:
    whole, half = served.archive, served.archive[: len(served.archive) // 2]
    server.archive = half
    with pytest.raises(UserError, match=r"enwik8\.zip does not unpack: .* It is truncated or damaged"):
        make(data_dir, served, server, zip_size=len(half), zip_sha256=hashlib.sha256(half).hexdigest()).setup("fit")
    assert contents(data_dir) == []
    server.archive = whole
    check_recovers(data_dir, served, server)


def test_archive_with_another_text_is_refused(data_dir: Path, served: Served, server: Server) -> None:
    for change, message in (
        ({"sha256": "0" * 64}, "the SHA-256 is"),
        ({"size": len(served.text) + 1}, "ended after"),
        ({"size": len(served.text) - 1}, "more than"),
    ):
        with pytest.raises(UserError, match=f"member enwik8: {message}"):
            make(data_dir, served, server, **change).setup("fit")
        assert contents(data_dir) == []
    check_recovers(data_dir, served, server)


def test_uncreatable_directory_is_reported(data_dir: Path, served: Served, server: Server) -> None:
    data_dir.write_text("a regular file")
    with pytest.raises(UserError, match=r"cannot be written .*data_dir=…(.|\n)*or name it with"):
        make(data_dir / "below", served, server).setup("fit")
    assert data_dir.read_text() == "a regular file"
    data_dir.unlink()
    check_recovers(data_dir, served, server)


def test_directory_without_permission_is_reported(open_dir: Path, served: Served, server: Server) -> None:
    data_dir = open_dir / "data"
    data_dir.mkdir()
    with read_only(data_dir), pytest.raises(UserError, match=r"cannot be written \(Permission denied\).*data_dir="):
        make(data_dir, served, server).setup("fit")
    assert server.requests == 0
    assert list(data_dir.iterdir()) == []
    check_recovers(data_dir, served, server)


def test_a_read_only_directory_that_holds_enwik8_is_enough(open_dir: Path, served: Served, server: Server) -> None:
    data_dir = open_dir / "data"
    data_dir.mkdir()
    (data_dir / "enwik8").write_bytes(served.text)
    with read_only(data_dir):
        data = make(data_dir, served, server)
        data.setup("fit")
        assert len(data.corpus.ids) == len(served.text)
    assert server.requests == 0
    assert [path.name for path in data_dir.iterdir()] == ["enwik8"]


def test_full_disk_is_reported_and_leaves_no_files(data_dir: Path, served: Served, server: Server) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    in_the_archive, in_the_text = len(served.archive) // 2, (len(served.archive) + len(served.text)) // 2
    for limit, name in ((in_the_archive, r"enwik8\.zip"), (in_the_text, "enwik8")):
        # The kernel refuses longer files, like a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(UserError, match=rf"cannot write \S*/{name}: File too large\. Free space"):
                make(data_dir, served, server).setup("fit")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert contents(data_dir) == []
    check_recovers(data_dir, served, server)


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_during_download_leaves_no_files(data_dir: Path, served: Served, server: Server) -> None:
    server.behave = Handler.send_half_then_press_ctrl_c
    with pytest.raises(KeyboardInterrupt):
        make(data_dir, served, server).setup("fit")
    assert contents(data_dir) == []
    check_recovers(data_dir, served, server)


def test_leftover_part_files_are_overwritten(data_dir: Path, served: Served, server: Server) -> None:
    data_dir.mkdir()
    (data_dir / "enwik8.zip.part").write_bytes(served.archive[:1000])
    (data_dir / "enwik8.part").write_bytes(b"?" * 2 * len(served.text))
    check_recovers(data_dir, served, server)


@pytest.mark.parametrize("name", ["enwik8", "enwik8.zip"])
def test_user_file_is_never_replaced(name: str, data_dir: Path, served: Served, server: Server) -> None:
    data_dir.mkdir()
    (data_dir / name).write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"{name}: 4 bytes, expected (.|\n)*{name} exists: remove it"):
        make(data_dir, served, server).setup("fit")
    assert (data_dir / name).read_bytes() == b"mine"
    assert server.requests == 0
    (data_dir / name).unlink()
    check_recovers(data_dir, served, server)


@pytest.mark.parametrize("served", ["generated"], indirect=True)  # with one text only: importing takes seconds
def test_concurrent_processes_download_once(data_dir: Path, served: Served, server: Server) -> None:
    program = (
        "import sys\n"
        "from gridlstm.data.enwik8 import Enwik8\n"
        f"source = Enwik8({str(data_dir)!r}, url={server.url!r}, **{served.options()!r})\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(source.find(None).file.stat().st_size)\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([python(), "-c", program], **pipes) for _ in range(2)]
    told = threading.Event()

    def send_late(handler: Handler) -> None:
        told.wait(PATIENCE)
        threading.Event().wait(0.5)  # leaves time for a second request, which there must not be
        handler.send_whole()

    server.behave = send_late
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.communicate()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    told.set()
    outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [printed for printed, _ in outputs] == [f"{len(served.text)}\n"] * 2
    assert server.requests == 1
    assert contents(data_dir) == ["enwik8"]


def test_failed_fetch_keeps_the_old_file(tmp_path: Path, served: Served, server: Server) -> None:
    destination = tmp_path / "file"
    destination.write_bytes(b"old")
    size, sha256 = len(served.archive), hashlib.sha256(served.archive).hexdigest()
    server.behave = Handler.send_damaged
    with pytest.raises(UserError):
        fetch(server.url, destination, size, sha256)
    assert destination.read_bytes() == b"old"
    server.behave = Handler.send_whole
    fetch(server.url, destination, size, sha256)
    assert destination.read_bytes() == served.archive
    assert contents(tmp_path) == ["file"]


def test_unzip_names_a_missing_member(tmp_path: Path, served: Served) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(served.archive)
    with pytest.raises(UserError, match=r"a\.zip has no member enwik9"):
        unzip_member(archive, "enwik9", tmp_path / "enwik9", 1, "0")
    with pytest.raises(UserError, match=r"none\.zip does not unpack: .*No such file"):
        unzip_member(tmp_path / "none.zip", "enwik8", tmp_path / "enwik8", 1, "0")
    assert contents(tmp_path) == ["a.zip"]


def test_unpublished_checksum_is_recorded_and_checked_later(data_dir: Path, tmp_path: Path) -> None:
    text = b"anarchism originated as a term of abuse " * 500
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text8", text)
    data_dir.mkdir()
    (data_dir / "text8.zip").write_bytes(packed.getvalue())
    sizes = {"zip_size": len(packed.getvalue()), "zip_sha256": None, "size": len(text), "sha256": None}

    source = Text8(data_dir, url="http://127.0.0.1:9/text8.zip", **sizes)
    assert source.find(None).file.read_bytes() == text
    digest = hashlib.sha256(text).hexdigest()
    assert (data_dir / "text8.sha256").read_text() == f"{digest}  text8\n"
    (data_dir / "text8.sha256").unlink()
    assert source.find(None).file == data_dir / "text8"
    assert (data_dir / "text8.sha256").read_text() == f"{digest}  text8\n", (
        "the checksum of an existing file is recorded too"
    )
    (data_dir / "text8").write_bytes(text.upper())
    with pytest.raises(UserError, match=rf"text8: SHA-256 [0-9a-f]*, expected {digest}"):
        source.find(None)
    (data_dir / "text8.sha256").unlink()
    with pytest.raises(UserError, match=r"is not text8: it holds 16 bytes other than .*, such as 65"):
        source.find(None)
    assert not (data_dir / "text8.sha256").exists()


def test_a_checksum_is_recorded_by_one_process_at_a_time(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_locked(path: Path, content: str) -> None:
        with pytest.raises(Timeout):
            FileLock(data_dir / ".text8.lock").acquire(timeout=0)
        write_text(path, content)

    monkeypatch.setattr("gridlstm.data.enwik8.write_text", write_locked)
    data_dir.mkdir()
    (data_dir / "text8").write_bytes(b"anarchism " * 500)
    Text8(data_dir, size=5000).find(None)
    assert (data_dir / "text8.sha256").exists()


def test_text8_is_downloaded_and_unpacked(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    text = bytes(random.Random(0).choices(b"abcdefghijklmnopqrstuvwxyz ", k=20_000))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text8", text)
    running = Server(packed.getvalue())
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    sizes = {"zip_size": len(packed.getvalue()), "zip_sha256": None, "size": len(text), "sha256": None}
    try:
        assert Text8(data_dir, url=running.url, **sizes).find(None).file.read_bytes() == text
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
    assert sorted(path.name for path in data_dir.iterdir() if path.name != ".text8.lock") == ["text8", "text8.sha256"]
