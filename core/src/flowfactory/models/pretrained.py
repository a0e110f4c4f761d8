"""A pretrained pipeline as diffusers saves it: its parts, opened a few at a time."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowfactory.discovery.installed_version import installed_version
from flowfactory.errors import UserError
from flowfactory.models.checkpoint_files import check_file, check_files, read_settings, reading, variants, weight_files
from flowfactory.models.library_imports import library_class, only_diffusers, reads_text
from flowfactory.models.loading_report import load_module
from flowfactory.models.scheduler_settings import check_scheduler
from flowfactory.models.single_file import load_single_file
from flowfactory.models.tokenizers import OF_BYTES, check_vocabulary, check_vocabulary_files, limit_length, load_tokenizer
from flowfactory.postponed_imports import settle_imports

LIBRARIES = ("diffusers", "transformers")
INDEX = "model_index.json"
ANY_MODEL = "PreTrainedModel"
MODELS = r"(?!Auto|DataCollator){family}(Model|For[A-Z]\w+)"
"""How transformers calls the models of a family, such as Gemma2, all of which are a Gemma2PreTrainedModel and so an ANY_MODEL;
what goes by such a name and is none is left out."""
SETTINGS = {"SchedulerMixin", "ImageProcessingMixin", "FeatureExtractionMixin"}
"""What parts of a pipeline are that are no modules and no tokenizers: none of these runs code in its folder."""


class Pretrained:
    """A folder or a hub id that ``pipelines[0]`` opens, a class of diffusers; ``pipelines`` are what it may call itself.

    variant: of the weights, where a part has it. unused: by part, names of weights as :func:`refuse_gaps` takes them.
    single_files: by part, the file that has its weights in place of those in its folder.
    """

    def __init__(
        self,
        path: str,
        pipelines: tuple[str, ...],
        variant: str | None = None,
        unused: Mapping[str, Collection[str]] | None = None,
        single_files: Mapping[str, Path] | None = None,
    ) -> None:
        self.path, self._pipelines, self._variant, self._unused = path, pipelines, variant, unused or {}
        self._single_files = single_files or {}
        self._online, self._fetched = True, dict[frozenset[str], Path]()

    @cached_property
    def _class(self) -> Any:
        return library_class("diffusers", self._pipelines[0])

    @cached_property
    def _index(self) -> tuple[dict[str, Any], str | None]:
        if Path(self.path).is_dir():
            self.config("")  # says more about a folder that is none
        with reading(f"model.path: {self.path}"):
            index, commit = self._class.load_config(self.path, return_commit_hash=True, local_files_only=not self._online)
        self._check_class(index)
        return index, commit

    def _check_class(self, index: Mapping[str, Any]) -> None:
        named = index.get("_class_name")
        if named not in self._pipelines:
            wanted = " or ".join(self._pipelines)
            raise UserError(f"model.path {self.path} holds a {named}; this model reads {wanted}")

    @property
    def settings(self) -> dict[str, Any]:
        """What the pipeline's own config says."""
        return self._index[0]

    @property
    def parts(self) -> dict[str, bool]:
        """The names of its parts that the class knows, and whether it has each."""
        known = inspect.signature(self._class).parameters
        return {name: part != [None, None] for name, part in self.settings.items() if is_part(part) and name in known}

    @property
    def arguments(self) -> dict[str, Any]:
        """What the pipeline's class is made with beside its parts."""
        known = inspect.signature(self._class).parameters
        return {name: value for name, value in self.settings.items() if name in known and not is_part(value)}

    def check(self, needed: Collection[str]) -> None:
        """UserError: it is another pipeline, lacks parts that are ``needed``, or is damaged, as far as files here tell.

        Reads configs and the headers of weights. Folders that are not there are let pass: encoders are not always used.
        """
        index = self.config("")
        if not index:
            return
        self._check_class(index)
        folder = self._local_folder()
        assert folder is not None  # the index is in it
        with said_of_the_path():
            self._check_names(index, needed)
            listed = [name for name, part in index.items() if is_part(part) and part != [None, None]]
            named = [name for name in listed if Path(name).name == name]
            there = [name for name in named if (folder / name).is_dir()]
            # small, and of no use without their encoder: where that is, they are forgotten
            read = {_vocabulary_of(index, name) for name in there if name.startswith("text_encoder")}
            there += [name for name in named if name not in there and name in read]
            for name in there:
                self._check_part(index, folder, name)
            if self._variant and not any(self._variant_of(folder / name) for name in there):
                has = f"no part of {self.path} has weights of the variant {self._variant}"
                raise UserError(f"model.variant: {has}; leave it out")

    def require(self, needed: Collection[str]) -> None:
        """UserError: the pipeline lacks one of the parts ``needed``, or has it of a library or a class that is not read."""
        with said_of_the_path():
            self._check_names(self.settings, needed)
            self._check_encoders()

    def _check_encoders(self) -> None:
        """UserError: a text encoder is of another class than the pipeline calls."""
        for name in (name for name, there in self.parts.items() if there and name.startswith("text_encoder")):
            # by name where that says enough: to look at a class imports transformers, which only encoding takes
            library, kind = self._class_name(self.settings, name)
            wanted = getattr(self._annotations.get(name), "__name__", "")
            if library != "transformers" or (kind != wanted and not is_named_as(kind, wanted)):
                self._check_encoder(name, self._kind(name))

    def _check_encoder(self, name: str, kind: type) -> None:
        wanted = self._annotations.get(name)
        if isinstance(wanted, type) and not issubclass(kind, wanted):
            told = f"is of the class {kind.__name__}, and a {self._class.__name__} has a {wanted.__name__}"
            raise UserError(f"{name} of {self.path} {told}; get {INDEX} again")

    @property
    def _annotations(self) -> Mapping[str, Any]:
        """What the pipeline's class says of each part; of transformers its classes once one of them was looked at."""
        return inspect.get_annotations(self._class.__init__, eval_str=True)

    def _check_names(self, index: Mapping[str, Any], needed: Collection[str]) -> None:
        named = [name for name, part in index.items() if is_part(part) and part != [None, None]]
        read = [_vocabulary_of(index, name) for name in named if name.startswith("text_encoder")]
        for name in dict.fromkeys([*needed, *read]):
            self._class_name(index, name)

    def _check_part(self, index: Mapping[str, Any], folder: Path, name: str) -> None:
        check_files(folder / name, self._variant_of(folder / name))
        if name == "scheduler":
            check_scheduler(folder / name, self._class_name(index, name)[1], f"{name} of {self.path}")
        if name in (_vocabulary_of(index, part) for part in index if part.startswith("text_encoder")):
            if self._class_name(index, name)[1] != OF_BYTES:
                check_vocabulary_files(folder / name, f"{name} of {self.path}")
            check_file(folder / name / "tokenizer_config.json")  # else transformers makes up its length and its padding
        others = variants(folder / name)
        if others and not weight_files(folder / name, self._variant) and not weight_files(folder / name):
            raise UserError(
                f"{name} of {self.path} has weights of the variant {others[0]} alone; set model.variant: {others[0]}"
            )

    def _class_name(self, index: Mapping[str, Any], name: str) -> tuple[str, str]:
        """The library and the class of a part."""
        match index.get(name):
            case [str(library), str(kind)]:
                pass
            case _:
                raise UserError(f"{self.path} has no {name}: {INDEX} names none, and this model needs one; get it again, whole")
        if library not in LIBRARIES:
            raise UserError(
                f"{name} of {self.path} is of the class {kind} of {library}; those of {' and '.join(LIBRARIES)} are read"
            )
        return library, kind

    def open(
        self, names: Collection[str], dtypes: Mapping[str, torch.dtype], staying: Collection[str] = (), **given: Any
    ) -> Any:
        """The pipeline with the parts ``names`` in host memory, ``given`` in their place, and None for all others.

        ``dtypes`` are by part, with one for "default". The weights of the parts ``staying`` stay in their files, where they
        can, until :func:`flowfactory.stored_weights.place`.
        UserError: a part is not there, damaged, not what its config says, or needs a library that is not installed; a tokenizer
        does not go with its encoder.
        """
        from diffusers.utils import logging

        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        there = self.parts
        read = [name for name in names if there.get(name) and name not in given]
        with said_of_the_path():
            folder = self.fetch(read)
            kinds = {name: self._kind(name) for name in read}
            for name, kind in kinds.items():
                self._check_encoder(name, kind) if name.startswith("text_encoder") else None
            for name in read:
                self._check_part(self.settings, folder, name) if (folder / name).is_dir() else check_files(folder / name)
            made = {}
            for name in read:
                made[name] = self.load(kinds[name], folder, name, dtypes.get(name, dtypes["default"]), name in staying)
            for name, encoder in made.items():
                if name.startswith("text_encoder"):
                    self._fit_tokenizers(made, name, encoder)
        with only_diffusers():
            pipeline = self._class(**self.arguments | dict.fromkeys(there) | given | made)
        pipeline.register_to_config(_name_or_path=self.path)
        return pipeline

    def _fit_tokenizers(self, made: Mapping[str, Any], name: str, encoder: Any) -> None:
        """None is longer than ``encoder`` has places for. UserError: one has other ids."""
        embeddings = encoder.get_input_embeddings().num_embeddings
        for other in (name.replace("text_encoder", kind) for kind in ("tokenizer", "processor")):
            if other in made:
                check_vocabulary(made[other], embeddings, f"{other} of {self.path}")
                limit_length(made[other], encoder)

    def fetch(self, names: Collection[str]) -> Path:
        """The folder on this machine with the parts ``names``, downloaded where ``path`` is a hub id."""
        if Path(self.path).is_dir():
            return Path(self.path)
        wanted = frozenset(names)
        if wanted not in self._fetched:
            others = {name: None for name in self.parts if name not in wanted}
            with reading(self.path):
                settle_imports("diffusers", "transformers")  # it puts names of files together
                found = self._class.download(self.path, variant=self._variant, local_files_only=not self._online, **others)
            self._fetched[wanted] = Path(found)
        return self._fetched[wanted]

    @contextmanager
    def asking_the_hub(self, online: bool) -> Iterator[None]:
        """Within it the hub is asked if ``online``; else what was downloaded before is taken as it is."""
        self._online = online
        try:
            yield
        finally:
            self._online = True

    def load(self, kind: Any, folder: Path, name: str, dtype: torch.dtype, stays: bool = False) -> Any:
        """The part ``name`` of class ``kind`` below ``folder``, with its weights in ``dtype``.

        stays: whether they stay in their files, where they can, until :func:`flowfactory.stored_weights.place`.
        """
        path, source = folder / name, f"{name} of {self.path}"
        if name in self._single_files:
            return load_single_file(kind, self._single_files[name], path, dtype, self._unused.get(name, ()))
        if issubclass(kind, nn.Module):
            return load_module(kind, path, source, self._unused.get(name, ()), self._variant_of(path), stays, dtype=dtype)
        if reads_text(kind):
            return load_tokenizer(kind, path, source)
        known = type(kind).__name__ == "DummyObject" or SETTINGS & {base.__name__ for base in kind.__mro__}
        if not known:  # such as a pipeline, or what chooses a class by the files; a dummy names the library that it lacks
            raise UserError(f"{source} is of the class {kind.__name__}, which is no part of a pipeline; get {INDEX} again")
        with reading(source), only_diffusers():
            return kind.from_pretrained(path)

    def _kind(self, name: str) -> Any:
        library, named = self._class_name(self.settings, name)
        with reading(f"{name} of {self.path}"):
            kind = library_class(library, named)
        if not isinstance(kind, type) or not hasattr(kind, "from_pretrained"):
            lacking = f"is of the class {named}, which {library} {installed_version(library)} lacks"
            raise UserError(f"{name} of {self.path} {lacking}; install one that has it")
        return kind

    def _variant_of(self, folder: Path) -> str | None:
        """The variant where ``folder`` has it."""
        return self._variant if self._variant and weight_files(folder, self._variant) else None

    def identity(self, names: Collection[str]) -> list[str | None]:
        """What changes when the files of the parts ``names`` do."""
        return [checkpoint_identity(self.path, sorted(names)), self._index[1]]

    def config(self, part: str) -> dict[str, Any]:
        """The config of a part, or with "" of the pipeline; empty where it is not on this machine. Never downloads.

        UserError: it cannot be read, or a folder has none of the pipeline.
        """
        folder = self._local_folder()
        if folder is None:
            return {}
        file = folder / {"": INDEX, "scheduler": "scheduler/scheduler_config.json"}.get(part, f"{part}/config.json")
        if not file.is_file():
            if not part:
                raise UserError(
                    f"model.path: {folder} has no {INDEX}; give the folder of a whole pipeline, as diffusers saves it"
                )
            return {}
        with said_of_the_path():
            found: dict[str, Any] = read_settings(file)
        return found

    def _local_folder(self) -> Path | None:
        if Path(self.path).is_dir():
            return Path(self.path)
        from huggingface_hub import try_to_load_from_cache

        index = try_to_load_from_cache(self.path, INDEX)
        return Path(index).parent if isinstance(index, str) else None


def is_named_as(kind: str, wanted: str) -> bool:
    """Whether the name ``kind`` says that it is a class of transformers' below ``wanted``, which is one of all its models."""
    family = re.escape(wanted.removesuffix(ANY_MODEL)) or ".+"
    return wanted.endswith(ANY_MODEL) and re.fullmatch(MODELS.format(family=family), kind) is not None


def is_part(value: Any) -> bool:
    """Whether the index says with it which library and class a part is of; a list of numbers is an argument."""
    return isinstance(value, list) and not any(isinstance(item, int | float) for item in value)


def _vocabulary_of(index: Mapping[str, Any], encoder: str) -> str:
    """The part that has the tokens of a text encoder: its tokenizer, or a processor alone."""
    tokenizer = encoder.replace("text_encoder", "tokenizer")
    return "processor" if is_part(index.get("processor")) and not is_part(index.get(tokenizer)) else tokenizer


@contextmanager
def said_of_the_path() -> Iterator[None]:
    """Within it a UserError is one about model.path."""
    try:
        yield
    except UserError as error:
        raise error if str(error).startswith("model.") else UserError(f"model.path: {error}") from error


def checkpoint_identity(path: str, parts: Sequence[str] = ()) -> str:
    """What changes when the checkpoint does: name, size and time of the files below ``parts`` of a folder, else the hub id.

    A copy of a folder counts as another checkpoint, which costs one encoding and never a wrong one.
    """
    root = Path(path)
    if not root.is_dir():
        return path
    folders = [root / part for part in parts] or [root]
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
    facts = [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([str(root.resolve()), facts]).encode()).hexdigest()
