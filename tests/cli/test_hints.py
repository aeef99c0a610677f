"""What hints name exists: arguments of Python, flags and commands of the shell, in their place."""

import ast
import re
from pathlib import Path

import pytest

import vcjax
from vcjax import Repository, VcjaxError, errors
from vcjax.cli import command_table as registry
from vcjax.cli import main
from vcjax.storage import urls

PACKAGE = Path(vcjax.__file__).parent

ARGUMENT = re.compile(r"(?<![-\w{.])([a-z]\w*)=")
FLAG = re.compile(r"(?<![\w-])--([a-z]\w*(?:-\w+)*)")
COMMAND = re.compile(r"(?:`|usage: |^)vcjax (\{\}|[a-z]\w*)([^`;]*)")
PYTHON = re.compile(r"(?<![-\w{.'])[a-z]\w*=|\b\w+\.\w+\(|\bRepository\.")
URL_OPTION = re.compile(r"\?([a-z]\w*)=[^\s;,&]+")
"""What is said in the URL of a bucket, the same in Python and in the shell."""

FUNCTIONS = {}
"""{name: the functions called so in the package}."""
for _path in PACKAGE.rglob("*.py"):
    for _node in ast.walk(ast.parse(_path.read_text())):
        if isinstance(_node, ast.FunctionDef):
            FUNCTIONS.setdefault(_node.name, []).append(_node)

ELSEWHERE = {
    "primary_host": "of orbax.checkpoint's MultiprocessingOptions",
    "read_only": "of orbax.checkpoint's CheckpointManagerOptions",
    "tiled": "of jax.experimental.multihost_utils.process_allgather",
}
"""{argument of another library's function that a hint names: whose it is}."""

NO_COMMANDS = ("mergekit/recipe_run.py",)
"""Where a hint begins with what vcjax does."""

PYTHON_ALONE = (
    "evaluation/",
    "formats/arrays.py",
    "merging/",
    "orbax/checkpointers.py",
    "orbax/items/",
    "orbax/manager/",
    "orbax/v1/",
    "processes/",
    "report/pictures.py",
    "repo/shared_commit.py",
    "tree/",
)
"""What commands do not call, or not so that these errors come: one hint is enough there."""


def texts(node):
    """The strings in an expression, with {} for what is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def returned(value):
    """The strings in the functions of the package that make a hint."""
    for node in ast.walk(value):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            for made in FUNCTIONS.get(node.func.id, ()):
                for part in made.body[1:] if ast.get_docstring(made) else made.body:
                    yield from texts(part)


def targets(node):
    """The names that an assignment sets, in small letters."""
    names = (part for target in node.targets for part in ast.walk(target))
    return {name.id.lower() for name in names if isinstance(name, ast.Name)}


def hints():
    """(file, line, "hint" or "shell_hint", text, whether there is another one for the shell)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        nodes = list(ast.walk(ast.parse(path.read_text())))
        assigned = {t for node in nodes if isinstance(node, ast.Assign) for t in targets(node)}
        for node in nodes:
            both = False
            if isinstance(node, ast.Call):
                found = {k.arg: k.value for k in node.keywords if k.arg in ("hint", "shell_hint")}
                if isinstance(node.func, ast.Attribute) and node.func.attr == "add_hint":
                    found |= zip(("hint", "shell_hint"), node.args, strict=False)
                both = "shell_hint" in found
            elif isinstance(node, ast.Assign):
                found = {n: node.value for n in targets(node) if n in ("hint", "shell_hint")}
                both = "shell_hint" in assigned
            else:
                continue
            for kind, value in found.items():
                for text in (*texts(value), *returned(value)):
                    yield name, node.lineno, kind, text, both


HINTS = [pytest.param(*found, id=f"{found[0]}:{found[1]}-{i}") for i, found in enumerate(hints())]


@pytest.fixture(scope="session")
def arguments():
    """The names of all parameters of public functions, and of fields of public classes."""
    found = set(ELSEWHERE)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if not node.name.startswith("_") or node.name == "__init__":
                    given = node.args
                    found |= {a.arg for a in [*given.posonlyargs, *given.args, *given.kwonlyargs]}
            elif isinstance(node, ast.ClassDef):
                fields = (n.target for n in node.body if isinstance(n, ast.AnnAssign))
                found |= {field.id for field in fields if isinstance(field, ast.Name)}
    return found


@pytest.fixture(scope="session")
def flags():
    """{command: names of its flags}, with those of `vcjax` itself by ""."""
    own = {name: set(registry.load(name).flag_values()) for name in registry.names()}
    return {**own, "": {"version", *(flag for found in own.values() for flag in found)}}


def test_hints_are_found():
    assert len(HINTS) > 200
    kinds = {param.values[2] for param in HINTS}
    assert kinds == {"hint", "shell_hint"}


@pytest.mark.parametrize(("file", "line", "kind", "text", "both"), HINTS)
def test_what_a_hint_names_exists(file, line, kind, text, both, arguments, flags):
    options = set().union(*urls._OPTIONS.values())
    strange = [name for name in URL_OPTION.findall(text) if name not in options]
    assert not strange, f"no URL has an option {strange}"
    spoken = re.sub(r"--\w+='[^']*'", "", URL_OPTION.sub("", text))
    unknown = [name for name in ARGUMENT.findall(spoken) if name not in arguments]
    assert not unknown, f"no public function has an argument {unknown}"
    for name in FLAG.findall(text):
        assert name.replace("-", "_").removeprefix("no_") in flags[""], f"no flag --{name}"
    for command, rest in COMMAND.findall(text):
        if file in NO_COMMANDS or command == "{}":
            continue
        assert command in registry.names(), f"no command {command}"
        lacking = [n for n in FLAG.findall(rest) if n.replace("-", "_") not in flags[command]]
        assert not lacking, f"vcjax {command} has no flag {lacking}"


@pytest.mark.parametrize(("file", "line", "kind", "text", "both"), HINTS)
def test_a_hint_speaks_the_language_of_its_place(file, line, kind, text, both):
    whole = COMMAND.sub("", URL_OPTION.sub("", text))
    spoken = re.sub(r"--\w+='[^']*'", "", whole)
    if file.startswith("cli/") or kind == "shell_hint":
        assert not PYTHON.search(spoken), "Python in a hint of the shell"
    else:
        assert not FLAG.search(whole), "a flag in a hint of Python"
        if not file.startswith(PYTHON_ALONE):
            assert both or not PYTHON.search(spoken), "the shell needs a hint of its own"


def test_what_is_added_to_a_hint_goes_to_both():
    one = VcjaxError("m", hint="a")
    one.add_hint("b")
    assert (one.hint, one.shell_hint) == ("a; b", "a; b")
    one.add_hint("c", "d")
    assert (one.hint, one.shell_hint) == ("a; b; c", "a; b; d")
    one.add_hint("e")
    assert (one.hint, one.shell_hint) == ("a; b; c; e", "a; b; d; e")
    bare = errors.StructureError("m", hint="a", shell_hint="b")
    assert str(bare) == "m\n  hint: a"
    assert bare.shell_hint == "b"


def test_python_and_shell_are_told_in_their_own_words(tmp_path, capsys):
    Repository.init(tmp_path)
    with pytest.raises(errors.RepositoryExistsError, match=r"open it with `Repository\.open`"):
        Repository.init(tmp_path)
    assert main(["init", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert f"hint: name it with --repo={tmp_path}" in shown
    assert "Repository." not in shown


@pytest.mark.parametrize("word", registry.GIT_WORDS)
def test_a_command_of_git_names_what_does_it_here(word, capsys):
    assert word not in registry.names()
    assert main([word, "x"]) == 2
    hint = capsys.readouterr().err.partition("hint: ")[2]
    named = COMMAND.findall(hint)
    assert named
    for command, rest in named:
        flags = registry.load(command).flag_values()
        assert all(name.replace("-", "_") in flags for name in FLAG.findall(rest))


def test_the_flags_of_git_itself(capsys):
    for words in (["-C", "/runs", "log"], ["-C/runs", "log"]):
        assert main(words) == 2
        assert "--repo=/runs" in capsys.readouterr().err
    assert main(["-V"]) == 0
    assert capsys.readouterr().out.startswith("vcjax ")


@pytest.mark.parametrize(
    ("words", "message"),
    {
        ("log", "-n", "two"): "--limit=two: a whole number is expected",
        ("gc", "--grace=x"): "--grace=x: a number is expected",
        ("commit", "a", "-m"): "-m, --message=TEXT lacks its value",
        ("log", "--limit"): "-n, --limit=COUNT lacks its value",
    }.items(),
)
def test_what_is_wrong_with_a_flag_is_said_without_python(words, message, capsys):
    assert main(list(words)) == 2
    assert message in capsys.readouterr().err


def test_the_front_page_parts_names_and_summaries(capsys):
    assert main(["help"]) == 0
    shown = capsys.readouterr().out
    for name in registry.names():
        assert f"  {name} " in shown
