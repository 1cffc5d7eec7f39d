"""The table of commands tells the truth: each entry names a click command that exists."""

from __future__ import annotations

import importlib
import importlib.util

import click
import pytest

from medley.cli.main import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_entry_is_a_command_of_that_name(name: str) -> None:
    module_name, _, attribute = COMMANDS[name].target.partition(":")
    if importlib.util.find_spec(module_name) is None:
        pytest.skip("not written yet")
    command = getattr(importlib.import_module(module_name), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help
