"""Private names of other libraries stand in the modules that docs/architecture.md lists."""

import ast
import errno
import http.server
import importlib
import os
import re
import threading
from pathlib import Path

import pytest
import tensorstore as ts

from vcjax.processes import jax_internals
from vcjax.storage import tensorstore_internals

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("vcjax", "scripts", "configs", "examples", "tests")
OURS = {*FOLDERS, "worker"}  # tests/processes/worker.py is run as a script
STANDARD_LIBRARY = {"_asdict", "_current_frames", "_exit", "_fields", "_make", "_replace"}
SRC = "_" + "src"
"""The folder in which JAX and Orbax keep what is not for others."""

TEXT_METHODS = {
    *("count", "endswith", "find", "findall", "fullmatch", "index", "match", "partition"),
    *("removeprefix", "removesuffix", "rpartition", "search", "split", "startswith"),
}


def table():
    """(name or text in quotation marks, module) of every row."""
    text = (ROOT / "docs/architecture.md").read_text()
    section = text.partition("## Private names of other libraries")[2].partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[1].startswith("`"):
            module = cells[2].strip("`")
            yield from ((name, module) for name in re.findall("`([^`]+)`", cells[1]))


ROWS = list(table())
NAMES = [name for name, _ in ROWS if not name.startswith('"')]
TEXTS = [name.strip('"') for name, _ in ROWS if name.startswith('"')]
MODULES = {module for _, module in ROWS}


# -- the names are there -----------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_there(name):
    parts = re.findall(r"[\w.]+", name)[0].split(".")
    for end in range(1, len(parts) + 1):
        try:
            importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            break
    eval(name, {parts[0]: importlib.import_module(parts[0])})


@pytest.mark.parametrize(("name", "module"), ROWS)
def test_a_module_knows_its_names(name, module):
    last = name.strip('"') if name.startswith('"') else re.findall(r"\w+", name)[-1]
    source = (ROOT / module).read_text()
    if module.endswith("jax_internals.py"):  # the client is handed out, and others call it
        source += (ROOT / "vcjax/processes/conversation.py").read_text()
    assert last in source


# -- the texts are what the libraries say ------------------------------------------


def failure(future):
    with pytest.raises(Exception, match=r"\w") as caught:
        future.result()
    return caught.value


@pytest.mark.smoke
def test_the_suffix_of_temporary_files(tmp_path):
    store = ts.KvStore.open({"driver": "file", "path": f"{tmp_path}/"}).result()
    (tmp_path / f"key{tensorstore_internals.TEMPORARY}").mkdir()
    said = str(failure(store.write("key", b"value")))
    assert f"key{tensorstore_internals.TEMPORARY}" in said
    assert os.strerror(errno.EISDIR) in said  # so texts of the operating system get through


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, tensorstore_internals.is_full),
        (errno.EDQUOT, tensorstore_internals.is_full),
        (errno.EACCES, tensorstore_internals.is_refused),
        (errno.EROFS, tensorstore_internals.is_refused),
    ],
)
def test_texts_of_the_operating_system(number, says):
    assert says(ValueError(f"FAILED_PRECONDITION: Failed to open: {os.strerror(number)}"))
    assert not says(ValueError("FAILED_PRECONDITION: Failed to open: File name too long"))


@pytest.mark.smoke
def test_arrays_and_chunks_that_are_missing(tmp_path):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/array/"}}
    assert tensorstore_internals.is_missing(failure(ts.open(spec)))
    spec["fill_missing_data_reads"] = False
    array = ts.open(spec, create=True, dtype="int8", shape=[4]).result()
    assert tensorstore_internals.is_missing(failure(array.read()))


@pytest.fixture
def answer(monkeypatch):
    """What a bucket's service that answers with a status makes of a read."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    status = 0

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format, *_):
            """Says nothing on the terminal."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    retries = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
    spec = {
        "driver": "s3",
        "bucket": "models",
        "endpoint": f"http://127.0.0.1:{server.server_port}",
        "aws_region": "us-east-1",
    }

    def read(code):
        nonlocal status
        status = code
        context = ts.Context({"s3_request_retries": retries})
        return failure(ts.KvStore.open(spec, context=context).result().read("key"))

    yield read
    server.shutdown()
    server.server_close()


@pytest.mark.smoke
def test_answers_of_a_bucket(answer):
    assert tensorstore_internals.is_refused(answer(403))
    assert tensorstore_internals.is_unreachable(answer(503))


WAIT = """
import socket
import jax
from vcjax.processes.jax_internals import coordination_client, is_too_late
assert coordination_client() is None
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
jax.distributed.initialize(f"127.0.0.1:{port}", 1, 0)
try:
    coordination_client().blocking_key_value_get_bytes("nobody/writes/this", 1)
except RuntimeError as error:
    print(is_too_late(error))
"""


@pytest.mark.smoke
def test_a_message_that_is_not_there_yet(processes):
    assert processes.python(WAIT).finish()[0] == "True\n"
    assert not jax_internals.is_too_late(RuntimeError("UNAVAILABLE: connection refused"))


# -- and nobody else uses them -----------------------------------------------------


def sources():
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def own_names(trees):
    """Private names that these sources define themselves."""
    found = set()
    for node in (node for parsed in trees for node in ast.walk(parsed)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name) | ast.arg(arg=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.add(name)
    return {name for name in found if is_private(name)}


def private_uses(parsed, own):
    """(line, what) of every private name of somebody else."""
    foreign = set()
    for node in ast.walk(parsed):
        match node:
            case ast.Import(names=names):
                parts = [part for alias in names for part in alias.name.split(".")]
                foreign |= {
                    (alias.asname or alias.name).partition(".")[0] for alias in names
                } - OURS
            case ast.ImportFrom(module=module, names=names, level=level):
                is_ours = level or (module or "").partition(".")[0] in OURS
                parts = [] if is_ours else [*(module or "").split("."), *(a.name for a in names)]
                foreign |= set() if is_ours else {alias.asname or alias.name for alias in names}
            case ast.Attribute(attr=name, value=value):
                known = name in own and not (isinstance(value, ast.Name) and value.id in foreign)
                parts = [] if known else [name]
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr"), args=[_, ast.Constant(name), *_]
            ):
                parts = [] if name in own else [str(name)]
            case ast.Constant(value=str(text)):
                words = re.findall(r"\w+", text) if f".{SRC}" in text else []
                suffix = tensorstore_internals.TEMPORARY
                parts = [SRC] if SRC in words else ["_suffix"] * text.endswith(suffix)
            case _:
                continue
        for part in parts:
            if is_private(part) and part not in STANDARD_LIBRARY:
                yield node.lineno, part


def text_uses(parsed):
    """The lines at which the text of an error is searched for words."""
    handlers = [n for n in ast.walk(parsed) if isinstance(n, ast.ExceptHandler) and n.name]
    for handler in handlers:
        told = [f"str({handler.name})"]
        for node in ast.walk(handler):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    told += [name] * any(text in ast.unparse(value) for text in told)
                case ast.Compare(comparators=comparators):
                    if any(ast.unparse(part) in told for part in comparators):
                        yield node.lineno
                case ast.Call(func=ast.Attribute(attr=method, value=value), args=args):
                    used = {ast.unparse(part) for part in (value, *args)}
                    if method in TEXT_METHODS and used & set(told):
                        yield node.lineno


def elsewhere(find, *folders):
    """What `find` finds outside of the modules of the table."""
    paths = [path.relative_to(ROOT) for path in sources()]
    return [
        f"{path}:{use}"
        for path in paths
        if path.as_posix() not in MODULES and path.parts[0] in folders
        for use in find(ast.parse((ROOT / path).read_text()))
    ]


def test_private_names_are_used_in_their_modules_alone():
    own = own_names([ast.parse(path.read_text()) for path in sources()])
    assert elsewhere(lambda parsed: private_uses(parsed, own), *FOLDERS) == []


def test_texts_of_errors_are_searched_in_their_modules_alone():
    assert elsewhere(text_uses, "vcjax", "scripts", "configs", "examples") == []


@pytest.mark.parametrize(
    "line",
    [
        f"from jax.{SRC} import core",
        f"import jax.{SRC}.core",
        "from flax.nnx import _graph",
        "import orbax.checkpoint as ocp\nocp._ours",
        "handler._handler_registry",
        "getattr(handler, '_handler_registry')",
        f"name = 'orbax.checkpoint.{SRC}.handlers.X'",
        f"path.rglob('*{tensorstore_internals.TEMPORARY}')",
    ],
)
def test_a_private_name_is_found(line):
    assert len(list(private_uses(ast.parse(line), {"_ours"}))) == 1


def test_own_private_names_are_no_finding():
    code = "class A:\n def f(self): self._b = 1\nx._b\nx._fields\nfrom vcjax._version import x"
    parsed = ast.parse(code)
    assert list(private_uses(parsed, own_names([parsed]))) == []


@pytest.mark.parametrize(
    "line",
    [
        "print('full' in str(error))",
        "re.search('full', str(error))",
        "str(error).startswith('full')",
        "text = str(error).lower()\n if 'full' in text: pass",
    ],
)
def test_a_text_that_is_searched_is_found(line):
    code = f"try: f()\nexcept ValueError as error:\n {line}"
    assert len(list(text_uses(ast.parse(code)))) == 1
