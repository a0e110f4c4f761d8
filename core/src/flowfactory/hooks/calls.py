"""The hooks of one run, typed, and each answer checked as it comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import TYPE_CHECKING, Any

import pluggy
import torch
from torch import Tensor

from flowfactory.canvas import Canvas
from flowfactory.data.condition_checks import one_each
from flowfactory.discovery.source_places import describe_exception, place_of
from flowfactory.errors import RunError, UserError
from flowfactory.experience import Experience, Loss
from flowfactory.hooks.evaluated_sample import EvaluatedSample
from flowfactory.types import Conditions, Evaluation, Prompt, RunInfo, Runtime, SamplingPlan, Say, Step, Trainable, Trajectory

if TYPE_CHECKING:
    from flowfactory.policy.comparing import Comparison
    from flowfactory.policy.policy import Policy


class Hooks:
    """The hooks of one run, typed. UserError: an answer is no such thing as the hook promises; it names who gave it."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self._hook: Any = manager.hook

    def load(self, runtime: Runtime) -> Trainable:
        """See RunSpecs.load."""
        result: Trainable = self._ask("load", Trainable, runtime=runtime)
        return result

    def encode(self, prompts: Sequence[Prompt], canvas: Canvas) -> Iterable[Mapping[str, Tensor]]:
        """See RunSpecs.encode."""
        result: Iterable[Mapping[str, Tensor]] = self._ask("encode", Iterable, prompts=prompts, canvas=canvas)
        return one_each(result, len(prompts), self._places("encode"))

    def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:
        """See RunSpecs.sample."""
        with torch.no_grad():
            result: Trajectory = self._ask("sample", Trajectory, conditions=conditions, plan=plan)
        return result

    def encode_media(self, media: Tensor) -> Tensor:
        """See RunSpecs.encode_media; as many latents as ``media``, in float32."""
        with torch.no_grad():
            result: Tensor = self._ask("encode_media", Tensor, media=media)
        if len(result) != len(media):
            raise UserError(f"{self._places('encode_media')} returned {len(result)} latents of {len(media)} media; return each")
        return result.float()

    def log_prob(self, step: Step) -> Evaluation:
        """See RunSpecs.log_prob."""
        result: Evaluation = self._ask("log_prob", Evaluation, step=step)
        return result

    def plan(self, iteration: int, plan: SamplingPlan) -> SamplingPlan:
        """See RunSpecs.plan; ``plan`` itself where no algorithm changes it."""
        if not self._hook.plan.get_hookimpls():
            return plan
        result: SamplingPlan = self._ask("plan", SamplingPlan, iteration=iteration, plan=plan)
        return result

    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:
        """See RunSpecs.update."""
        loss: Loss
        for loss in self._each("update", Loss, experience=experience, policy=policy):
            if loss.values.dim() != 1:
                values = f"{self._places('update')} yielded a Loss with values {list(loss.values.shape)}"
                raise UserError(f"{values}; give one value a sample, [b], and leave the mean to core")
            yield loss

    def prepare_tracker(self) -> None:
        """See RunSpecs.prepare_tracker."""
        self._call("prepare_tracker")

    def prompts_encoded(self, done: int, total: int) -> None:
        """See RunSpecs.prompts_encoded."""
        self._call("prompts_encoded", done=done, total=total)

    def phase_progressed(self, phase: str, done: int, total: int) -> None:
        """See RunSpecs.phase_progressed."""
        self._call("phase_progressed", phase=phase, done=done, total=total)

    @property
    def names_comparisons(self) -> bool:
        """Whether the algorithm says what its updates compare."""
        return bool(self._hook.comparisons.get_hookimpls())

    def comparisons(self, experience: Experience) -> Iterator[Comparison]:
        """See RunSpecs.comparisons; none where no algorithm names them."""
        if not self.names_comparisons:
            return
        for asked in self._each("comparisons", tuple, experience=experience):
            if not _is_comparison(asked):
                told = ", ".join(map(_kinds, asked))
                raise UserError(f"{self._places('comparisons')} yielded ({told}); {_ADVICE['comparisons']}")
            yield asked

    def run_started(self, run: RunInfo, policy: Policy) -> None:
        """See RunSpecs.run_started."""
        self._call("run_started", run=run, policy=policy)

    def evaluation_finished(self, iteration: int, samples: Sequence[EvaluatedSample]) -> None:
        """See RunSpecs.evaluation_finished."""
        self._call("evaluation_finished", iteration=iteration, samples=samples)

    def iteration_finished(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """See RunSpecs.iteration_finished."""
        self._call("iteration_finished", iteration=iteration, metrics=metrics)

    def checkpoint_saved(self, iteration: int, path: Path) -> None:
        """See RunSpecs.checkpoint_saved."""
        self._call("checkpoint_saved", iteration=iteration, path=path)

    def run_finished(self, run: RunInfo) -> None:
        """See RunSpecs.run_finished."""
        self._call("run_finished", run=run)

    def run_failed(self, run: RunInfo, error: BaseException, say: Say) -> None:
        """See RunSpecs.run_failed; each implementation is called, and ``say`` hears which of them raised."""
        names = [one.plugin_name for one in self._hook.run_failed.get_hookimpls()]
        plugins = self._manager.list_name_plugin()
        for name in reversed(names):
            caller = self._manager.subset_hook_caller("run_failed", [other for known, other in plugins if known != name])
            try:
                caller(run=run, error=error)
            except KeyboardInterrupt:  # of who does not want to wait for it
                say(f"warning: {name}: run_failed: interrupted before it was done")
            except (Exception, SystemExit) as problem:
                say(f"warning: {name}: run_failed: {describe_exception(problem)}")

    @property
    def encodes_media(self) -> bool:
        """Whether a component answers ``encode_media``."""
        return bool(self._hook.encode_media.get_hookimpls())

    def _ask(self, hook: str, wanted: Any, **given: Any) -> Any:
        return self._expect(hook, self._call(hook, **given), wanted, "returned")

    def _each(self, hook: str, wanted: Any, **given: Any) -> Iterator[Any]:
        """What ``hook`` yields, one ``wanted`` after the other."""
        answers = iter(self._ask(hook, Iterable, **given))
        while True:
            with self._no_exit(hook):
                answer = next(answers, _DONE)
            if answer is _DONE:
                return
            yield self._expect(hook, answer, wanted, "yielded")

    def _call(self, hook: str, **given: Any) -> Any:
        with self._no_exit(hook):
            return getattr(self._hook, hook)(**given)

    @contextmanager
    def _no_exit(self, hook: str) -> Iterator[None]:
        """RunError: within it somebody ends the process, which would look like a run that is done."""
        try:
            yield
        except SystemExit as error:
            raise RunError(f"{self._places(hook, error)}: {describe_exception(error)}; raise an error instead") from error

    def _expect(self, hook: str, answer: Any, wanted: Any, verb: str) -> Any:
        """``answer``, which is a ``wanted``. UserError: it is something else."""
        if isinstance(answer, wanted):
            return answer
        got = "nothing" if answer is None else f"a {type(answer).__name__}"
        advice = _ADVICE.get(hook, f"return a flowfactory.{wanted.__name__}")
        raise UserError(f"{self._places(hook)} {verb} {got}; {advice}")

    def _places(self, hook: str, error: BaseException | None = None) -> str:
        """Who answers: ``model: Glow.sample (glow.py line 12)``, and the wrappers around it; just who raised ``error``."""
        found = getattr(self._hook, hook).get_hookimpls()
        for frame, _ in walk_tb(error.__traceback__ if error else None):  # the innermost is last
            found = [one for one in getattr(self._hook, hook).get_hookimpls() if _is_call(frame, one.function)] or found
        return " within ".join(f"{one.plugin_name}: {place_of(one.function)}" for one in found)


def _is_call(frame: FrameType, function: Any) -> bool:
    """Whether ``frame`` is that of ``function``, of the object that it is a method of: several may have one class."""
    owner = getattr(function, "__self__", None)
    mine = owner is None or any(value is owner for value in frame.f_locals.values())
    return mine and frame.f_code is getattr(function, "__code__", None)


def _is_comparison(asked: tuple[Any, ...]) -> bool:
    if len(asked) != 2 or not isinstance(asked[0], Step) or not isinstance(asked[1], Mapping):
        return False
    from flowfactory.policy.comparing import At

    return all(isinstance(at, At) for at in asked[1].values())


def _kinds(part: Any) -> str:
    """``Step``, ``{'reference': str}``."""
    if not isinstance(part, Mapping):
        return type(part).__name__
    return "{" + ", ".join(f"{key!r}: {type(value).__name__}" for key, value in part.items()) + "}"


_DONE = object()
_ADVICE = {
    "encode": "yield one mapping of tensors a prompt",
    "encode_media": "return a torch.Tensor of latents",
    "update": "yield one flowfactory.Loss after the other",
    "plan": "return the plan",
    "comparisons": "yield a step and what is compared there, such as (step, {'reference': At(REFERENCE)}), one pair for each "
    "call of policy.compare",
}
