"""Groups of real processes on this machine, each group one JAX program."""

import json
import socket
import sys
from pathlib import Path

import pytest

from ..subprocesses import PATIENCE, Processes

WORKER = Path(__file__).with_name("worker.py")
HERE = ("127.0.0.1", 0)
"""A free port of this machine."""

DEVICES = 4
"""Of each group, whatever its number of processes."""

SHAPES = {2: [4, 1], 4: [2, 2]}
"""How the devices lie in a group's mesh, by its number of processes."""


class Failed(AssertionError):
    """A call that was to succeed."""


class Group:
    """The processes of one program.

    Args:
        starter: the process that forks them.
        count: how many.
    """

    def __init__(self, starter, count):
        self.count, self.shape = count, SHAPES[count]
        with socket.create_server(HERE, backlog=count) as listener, socket.socket() as free:
            listener.settimeout(PATIENCE)
            free.bind(HERE)
            ports = {"port": free.getsockname()[1], "channel": listener.getsockname()[1]}
            free.close()
            group = {"count": count, "devices": DEVICES // count, **ports}
            starter.write_line(json.dumps(group))
            accepted = [listener.accept()[0] for _ in range(count)]
        found = {}
        for channel in accepted:
            channel.settimeout(PATIENCE)
            stream = channel.makefile("rw")
            channel.close()  # the stream keeps it open
            found[json.loads(stream.readline())["index"]] = stream
        self.streams = [found[index] for index in range(count)]

    def start(self, name, **options):
        """Has all processes begin with a function of `worker.py`."""
        for stream in self.streams:
            stream.write(json.dumps([name, options]) + "\n")
            stream.flush()

    def answers(self):
        """The answer of each process; None of one that died."""
        found = []
        for stream in self.streams:
            try:
                line = stream.readline()
            except ConnectionResetError:
                line = ""
            found.append(json.loads(line) if line else None)
        return found

    def call(self, name, **options):
        """The result of each process."""
        self.start(name, **options)
        answers = self.answers()
        for answer in answers:
            if answer is None or "error" in answer:
                traces = [each and each.get("trace") for each in answers]
                raise Failed("\n".join(map(str, traces)))
        return [answer["result"] for answer in answers]

    def fail(self, name, **options):
        """The error of each process: (type, message)."""
        self.start(name, **options)
        answers = self.answers()
        assert all(answer and "error" in answer for answer in answers), answers
        return [(answer["error"], answer["message"]) for answer in answers]

    def close(self):
        for stream in self.streams:
            stream.close()


@pytest.fixture(scope="session")
def starter():
    """Forks the processes of all groups; what they write goes where these tests write."""
    with Processes() as processes:
        command = sys.executable, WORKER
        process = processes.start(*command, patience=None, stdout=None, stderr=None)
        yield process
        process.close_input()
        process.wait()


@pytest.fixture(scope="module")
def start(starter):
    """Starts groups; they end with the module."""
    groups = []

    def start(count):
        groups.append(Group(starter, count))
        return groups[-1]

    yield start
    for group in groups:
        group.close()


@pytest.fixture(scope="module")
def groups(start):
    return {count: start(count) for count in SHAPES}


@pytest.fixture(params=list(SHAPES))
def group(groups, request):
    return groups[request.param]


@pytest.fixture
def pair(groups):
    """Two processes, where four would add only time."""
    return groups[2]


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "repo")
