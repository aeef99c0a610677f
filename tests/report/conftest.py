"""Command lines on a repository that tests make."""

import pytest

from vcjax.cli import main


@pytest.fixture
def cli_of(capsys):
    """A repository's command line: what it prints, or says on stderr where `code` is not 0."""

    def on(repo):
        def run(*words, code=0):
            assert main([f"--repo={repo.url}", *words]) == code
            captured = capsys.readouterr()
            return captured.err if code else captured.out

        return run

    return on
