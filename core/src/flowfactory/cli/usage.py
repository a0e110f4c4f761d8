"""What is wrong with a command as it was typed, in one line."""

from __future__ import annotations

import re
from typing import Any

from flowfactory.suggestions import did_you_mean, join_or


def usage_error(error: Exception) -> str | None:
    """The sentence about an ``error`` of the parser of commands; None where it is not one, or wants the help to be shown."""
    wrong: Any = error
    if not hasattr(error, "format_message") or type(error).__name__.startswith("NoArgs"):
        return None
    context = wrong.ctx
    sentence = " ".join(wrong.format_message().split()).rstrip(".")
    path = context.command_path if context else "flowfactory"
    if hasattr(wrong, "possibilities"):
        return f"{path} has no option {wrong.option_name}{_options(wrong.option_name, context)}"
    if unknown := re.fullmatch(r"No such command '(.*?)'.*", sentence):
        return f"{path} has no command {unknown[1]!r}{did_you_mean(unknown[1], context.command.commands)}"
    if extra := re.match(r"Got unexpected extra argument\S* \((.*)\)", sentence):
        return f"{path} takes no {extra[1]!r}; {_meant(extra[1], context) or f'see {path} --help'}"
    if hasattr(wrong, "param_type"):  # one that is missing
        return f"{path} needs {wrong.param.metavar or wrong.param.name.upper()}; see {path} --help"
    if needy := re.match(r"Option '(.*?)' requires", sentence):
        return f"{needy[1]} needs a value after it"
    if invalid := re.match(r"Invalid value for (.*?): (.*)", sentence):
        names = join_or(re.findall(r"--?[\w-]+", invalid[1])) or invalid[1].strip("'")
        return f"{names}: {_wanted(invalid[2])}"
    return f"{path}: {sentence[:1].lower()}{sentence[1:]}; see {path} --help"


def _options(name: str, context: Any) -> str:
    known = [option for parameter in context.command.params for option in parameter.opts] if context else []
    long = [option for option in (*known, "--help") if option.startswith("--")]
    begin = [option for option in long if option.removeprefix("--").startswith(name.lstrip("-"))]
    return did_you_mean(name, long, begin)


def _meant(extra: str, context: Any) -> str | None:
    """What a word too many is likely to be for."""
    takes_sets = any("--set" in parameter.opts for parameter in context.command.params)
    words = extra.split()
    return f"write --set {' --set '.join(words)}" if takes_sets and all("=" in word for word in words) else None


def _wanted(told: str) -> str:
    """What an option takes, of pydantic's sentence about what it got."""
    words = told[:1].lower() + told[1:]
    for theirs, ours in (
        (r"^input should be a valid integer.*", "give a whole number"),
        (r"^input should be a valid number.*", "give a number"),
        (r"^input should be greater than or equal to ", "give at least "),
        (r"^input should be less than or equal to ", "give at most "),
        (r"^input should be ", "give "),
    ):
        words = re.sub(theirs, ours, words)
    return words
