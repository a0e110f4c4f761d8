"""The directive ``reference``: an entry for everything behind a public door, or for every hook, made from its source.

``{reference} flowfactory.rl`` walks ``flowfactory.rl.__all__``, ``{reference} hooks`` the hook specs. An entry has the
signature, the docstring, the members, and the file of ``reference/examples`` that bears its name.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import flowfactory

DOCS = Path(__file__).parent
EXAMPLES = DOCS / "reference" / "examples"
ROOMS = ("flow", "rl", "policy", "models", "rewards", "rewards.wire", "testing", "testing.tiny_checkpoints")
DOORS = ("flowfactory", *(f"flowfactory.{room}" for room in ROOMS))
"""In order: what stands behind several has its entry at the first."""
SPECS = {"flowfactory.discovery.specs": "DiscoverySpecs", "flowfactory.hooks.specs": "RunSpecs"}
HOOKS = "hooks"
FOLDERS = {HOOKS: HOOKS, "flowfactory": "types"}
"""Those of the examples; other doors have one of their own name."""

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True)
class Entry:
    """One public name: the ``door`` it is imported from, and the file and the node that define it."""

    door: str
    name: str
    file: Path
    node: Definition
    text: str

    @property
    def path(self) -> str:
        """What it is called on the page; a hook is imported from nowhere."""
        return self.name if self.door == HOOKS else f"{self.door}.{self.name}"

    @property
    def example(self) -> Path:
        """Where its example is, if it has one."""
        folder = FOLDERS.get(self.door, self.door.removeprefix("flowfactory."))
        return EXAMPLES / folder / f"{self.name}.py"


@cache
def tree_of(module: str) -> tuple[Path, ast.Module]:
    """The file of a module, and what stands in it."""
    place = Path(flowfactory.__file__).parents[1].joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return file, ast.parse(file.read_text(encoding="utf-8"))


@cache
def names_behind(door: str) -> tuple[str, ...]:
    """The ``__all__`` of ``door``, whose import would take long."""
    value = next(node.value for node in tree_of(door)[1].body if isinstance(node, ast.Assign) and assigned(node) == "__all__")
    return tuple(ast.literal_eval(value))


def definition(module: str, name: str) -> tuple[Path, Definition, str]:
    """The file that defines ``name`` as ``module`` has it, the node, and its own docstring, empty where it has none."""
    file, tree = tree_of(module)
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return file, node, ast.get_docstring(node) or ""
        if isinstance(node, ast.Assign | ast.AnnAssign) and assigned(node) == name:
            return file, node, written_below(following)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return definition(str(node.module), name)
    raise LookupError(f"{module} has no {name}")


def assigned(node: ast.AST) -> str:
    """The name that an assignment gives a value to."""
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
    return target.id if isinstance(target, ast.Name) else ""


def written_below(node: ast.AST | None) -> str:
    """The docstring below an assignment."""
    value = node.value if isinstance(node, ast.Expr) else None
    return inspect.cleandoc(value.value) if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


@cache
def entries(door: str) -> tuple[Entry, ...]:
    """Everything behind ``door``, in order; or every hook."""
    if door == HOOKS:
        return tuple(hook for module, specs in SPECS.items() for hook in hooks_of(module, specs))
    return tuple(Entry(door, name, *definition(door, name)) for name in names_behind(door))


def hooks_of(module: str, specs: str) -> Iterator[Entry]:
    """The hooks of one class of specs."""
    file, node, _ = definition(module, specs)
    for method in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(method, ast.FunctionDef):
            yield Entry(HOOKS, method.name, file, method, ast.get_docstring(method) or "")


@cache
def homes() -> dict[str, str]:
    """The path of every public name at the first door it stands behind."""
    found: dict[str, str] = {}
    for door in DOORS:
        for name in names_behind(door):
            found.setdefault(name, f"{door}.{name}")
    return found


def is_elsewhere(entry: Entry) -> bool:
    """Whether it is the same thing as one behind an earlier door."""
    home = homes().get(entry.name, entry.path)
    if entry.door == HOOKS or home == entry.path:
        return False
    return definition(home.rpartition(".")[0], entry.name)[1] is entry.node


def page(door: str) -> list[str]:
    """The lines of Markdown of a page: a list of the names, then their entries."""
    own = [entry for entry in entries(door) if not is_elsewhere(entry)]
    lines = ["| name | what it is |", "|---|---|"]
    for entry in entries(door):
        target = entry.path if entry in own else homes()[entry.name]
        lines.append(
            f"| {{py:obj}}`{entry.name} <{target}>` | {markdown(first_sentence(entry.text)).replace('|', chr(92) + '|')} |"
        )
    return lines + [line for entry in own for line in ["", *described(entry)]]


def first_sentence(text: str) -> str:
    """Of the docstring, without the point."""
    return re.split(r"(?<!\.)\.(?=\s|$)|\n\n", text, maxsplit=1)[0].replace("\n", " ")


def described(entry: Entry) -> list[str]:
    """One entry: signature, docstring, members and example."""
    node, lines = entry.node, ["", markdown(entry.text, names_in(entry))]
    if entry.door == HOOKS:
        lines += ["", "The first answer counts." if first_result(node) else "Each component that has it is called."]
    if isinstance(node, ast.ClassDef):
        thing = getattr(import_module(entry.door), entry.name)
        lines += options_of(thing)
        example, members = example_of(entry), [line for member in members_of(node) for line in ["", *member]]
        return fenced(6, f"{{py:class}} {entry.path}{class_signature(thing)}", lines + example + members)
    if isinstance(node, ast.FunctionDef):
        return fenced(
            6, f"{{py:function}} {entry.path}{signature(node, method=entry.door == HOOKS)}", lines + example_of(entry)
        )
    value = node.value
    assert value is not None
    if isinstance(value, ast.Subscript):
        return fenced(6, f"{{py:type}} {entry.path}", [f":canonical: {annotation(value)}", *lines, *example_of(entry)])
    return fenced(6, f"{{py:data}} {entry.path}", [f":value: {ast.unparse(value)}", *lines, *example_of(entry)])


def example_of(entry: Entry) -> list[str]:
    """The example, as code."""
    return ["", *fenced(3, "python", entry.example.read_text(encoding="utf-8").splitlines())] if entry.example.exists() else []


def fenced(ticks: int, head: str, lines: list[str]) -> list[str]:
    """``lines`` within a fence."""
    return ["`" * ticks + head, *lines, "`" * ticks]


def first_result(node: Definition) -> bool:
    """Whether pluggy asks for one answer."""
    return isinstance(node, ast.FunctionDef) and any("firstresult=True" in ast.unparse(mark) for mark in node.decorator_list)


def options_of(thing: Any) -> list[str]:
    """The keys of a config class, as the page of its component has them."""
    from options import table

    if not (isinstance(thing, type) and issubclass(thing, BaseModel) and thing.model_fields):
        return []
    return ["", "Its keys: [config](../config.md)."] if thing.__name__ == "RunConfig" else ["", *table(thing)]


def members_of(node: ast.ClassDef) -> Iterator[list[str]]:
    """The public methods and attributes of a class that have a docstring."""
    for member, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(member, ast.FunctionDef) and not re.match(r"_(?!_call_)", member.name):
            text = ast.get_docstring(member)
            if text:
                lines = ["", markdown(text, arguments_of(member))]
                marks = {ast.unparse(mark).rpartition(".")[2] for mark in member.decorator_list}
                if marks & {"property", "cached_property"}:
                    kind = [f":type: {annotation(member.returns)}"] if member.returns else []
                    yield fenced(5, f"{{py:property}} {member.name}", kind + lines)
                else:
                    kinds = [f":{mark}:" for mark in ("staticmethod", "classmethod", "abstractmethod") if mark in marks]
                    head = f"{member.name}{signature(member, method=True)}"
                    yield fenced(5, f"{{py:method}} {head}", kinds + lines)
        elif isinstance(member, ast.AnnAssign) and (text := written_below(following)):
            told = [
                f":type: {annotation(member.annotation)}",
                *([f":value: {ast.unparse(member.value)}"] if member.value else []),
            ]
            yield fenced(5, f"{{py:attribute}} {assigned(member)}", [*told, "", markdown(text)])


def class_signature(thing: type) -> str:
    """What a class is made of: the fields of a dataclass or named tuple, else what ``__init__`` takes; none of a config."""
    tuples = issubclass(thing, tuple) and hasattr(thing, "_fields")
    if dataclasses.is_dataclass(thing) or tuples:
        return f"({', '.join(fields_of(thing))})"
    if issubclass(thing, BaseModel | Exception) or "__init__" not in vars(thing) or getattr(thing, "_is_protocol", False):
        return ""
    node = class_node(thing)
    return next(
        (
            signature(made, method=True).partition(" -> ")[0]
            for made in node.body
            if isinstance(made, ast.FunctionDef) and made.name == "__init__"
        ),
        "",
    )


def class_node(thing: type) -> ast.ClassDef:
    """What defines a class."""
    node = definition(thing.__module__, thing.__name__)[1]
    assert isinstance(node, ast.ClassDef)
    return node


def fields_of(thing: type) -> Iterator[str]:
    """``name: type = default`` of each field, those of the classes it derives from first."""
    found: dict[str, str] = {}
    for base in reversed(thing.__mro__):
        if base.__module__.startswith("flowfactory."):
            for node in class_node(base).body:
                name = assigned(node)
                if (
                    isinstance(node, ast.AnnAssign)
                    and not name.startswith("_")
                    and "ClassVar" not in ast.unparse(node.annotation)
                ):
                    default = "" if node.value is None else f" = {default_of(node.value)}"
                    found[name] = f"{name}: {annotation(node.annotation)}{default}"
    yield from found.values()


def default_of(value: ast.expr) -> str:
    """A default; what a factory makes is called."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        given = {word.arg: ast.unparse(word.value) for word in value.keywords}
        return given.get("default") or f"{given['default_factory']}()"
    return ast.unparse(value)


def signature(node: ast.FunctionDef, method: bool) -> str:
    """``(rewards: Tensor, groups: Tensor) -> Tensor``, with public types by their whole names; a method's without ``self``."""
    arguments = ast.parse(ast.unparse(node)).body[0].args  # type: ignore[attr-defined]  # a copy, to be changed
    if method and "staticmethod" not in {ast.unparse(mark) for mark in node.decorator_list}:
        arguments.args = arguments.args[1:]
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg) and argument.annotation:
            argument.annotation = ast.Name(annotation(argument.annotation))
    returned = f" -> {annotation(node.returns)}" if node.returns else ""
    return f"({ast.unparse(arguments)}){returned}"


def annotation(node: ast.expr) -> str:
    """A type as it is written, without what only pydantic reads, and with public types by their whole names."""

    class Reader(ast.NodeTransformer):
        def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
            if ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
                return self.visit(node.slice.elts[0])  # type: ignore[no-any-return]
            return self.generic_visit(node)

        def visit_Name(self, node: ast.Name) -> ast.AST:
            home = homes().get(node.id)
            return ast.Name(f"~{home}") if home else node

        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            quoted = isinstance(node.value, str) and re.fullmatch(r"[\w.\[\], |]*\[.*\]", node.value)
            return self.visit(ast.parse(node.value, mode="eval").body) if quoted else node  # type: ignore[no-any-return]

    return ast.unparse(Reader().visit(ast.parse(ast.unparse(node), mode="eval").body))


def names_in(entry: Entry) -> set[str]:
    """What the docstring of an entry may tell of by ``name: text``: arguments, or fields."""
    if isinstance(entry.node, ast.FunctionDef):
        return arguments_of(entry.node)
    return {assigned(part) for part in entry.node.body} if isinstance(entry.node, ast.ClassDef) else set()


def arguments_of(node: ast.FunctionDef) -> set[str]:
    """The names of the arguments."""
    return {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}


def markdown(text: str, names: set[str] | frozenset[str] = frozenset()) -> str:
    """A docstring as Markdown: roles become links, ``name: text`` of one of ``names`` a list, and nothing else is marked up."""
    parts = re.split(r"(:\w+:`[^`]+`|``.+?``)", text, flags=re.DOTALL)
    read = "".join(linked(part) if i % 2 else escaped(part) for i, part in enumerate(parts))
    lines = []
    for line in read.split("\n"):
        told = re.match(r"((?:\w+, )*\w+)(: .*)", line.replace("\\_", "_") if ":" in line else line)
        if told and set(told[1].split(", ")) <= names:
            line = f"- `{told[1]}`{line[line.index(':') :]}"
        lines.append(line)
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Prose with no sign that Markdown reads; a paper by its arXiv id is a link."""
    plain = re.sub(r"([*_<\[\]])", r"\\\1", text)
    return re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", plain)


def linked(part: str) -> str:
    """Code, or a role: a link where its target is public, its name as code elsewhere."""
    role = re.fullmatch(r":\w+:`~?([^`]+)`", part)
    if role is None:
        return part
    target = role[1].lstrip(".")
    name = target.rpartition(".")[2]
    return f"{{py:obj}}`{name} <{homes()[name]}>`" if name in homes() else f"`{target if '.' in target else name}`"


def setup(app: Any) -> dict[str, bool]:
    """Add the directive."""
    from docutils import nodes
    from docutils.statemachine import StringList
    from sphinx.util.docutils import SphinxDirective

    class Reference(SphinxDirective):
        required_arguments = 1

        def run(self) -> list[nodes.Node]:
            door = self.arguments[0]
            for entry in entries(door):
                for file in (entry.file, entry.example):
                    self.env.note_dependency(str(file))
            holder = nodes.container(classes=["reference"])
            self.state.nested_parse(StringList(page(door), source=door), 0, holder)
            return list(holder.children)

    app.add_directive("reference", Reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
