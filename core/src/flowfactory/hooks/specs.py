"""The seam: every hook, who implements it and what it promises.

Two plugin managers share one marker. *Discovery* calls ``DiscoverySpecs``, in ``discovery/specs.py``, on every installed
plugin and must stay free of heavy imports. *A run* calls :class:`RunSpecs` on just the components that its config names.
Specs take no defaults and no ``*``: pluggy would never pass such a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowfactory.discovery.specs import hookspec

if TYPE_CHECKING:
    from concurrent.futures import Future

    import torch
    from torch import Tensor

    from flowfactory.canvas import Canvas
    from flowfactory.experience import Experience, Loss
    from flowfactory.hooks.evaluated_sample import EvaluatedSample
    from flowfactory.policy.comparing import Comparison
    from flowfactory.policy.policy import Policy
    from flowfactory.types import (
        Conditions,
        Evaluation,
        Prompt,
        RunInfo,
        Runtime,
        Samples,
        SamplingPlan,
        Step,
        Trainable,
        Trajectory,
    )


class RunSpecs:
    """What the components of a run answer. *One* means that assembly insists on exactly one implementation."""

    @hookspec(firstresult=True)
    def load(self, runtime: Runtime) -> Trainable:  # type: ignore[empty-body]
        """Weights in host memory, what of them trains, and the blocks to shard. Model, one.

        Core moves what is returned to ``runtime.device``, after the prompts of the first iterations are encoded.
        """

    @hookspec(firstresult=True)
    def encode(self, prompts: Sequence[Prompt], canvas: Canvas) -> Iterable[Mapping[str, Tensor]]:  # type: ignore[empty-body]
        """One mapping of tensors per prompt, in order, without a batch axis. Model, one.

        Called once per distinct prompt; core puts each answer on disk as it comes, which a generator makes the most of. Text
        encoders are loaded here, and freed: before the first iteration, and of many prompts in later ones, too. ``canvas`` is
        what will be drawn on, for conditions that must fit it.
        """

    @hookspec(firstresult=True)
    def sample(self, conditions: Conditions, plan: SamplingPlan) -> Trajectory:  # type: ignore[empty-body]
        """Media, clean latents and the recorded steps of one batch; no gradients. Model, one; algorithms may wrap."""

    @hookspec(firstresult=True)
    def encode_media(self, media: Tensor) -> Tensor:  # type: ignore[empty-body]
        """Clean latents [B, ...], as ``sample`` returns them, of media [B, C, H, W] or [B, F, C, H, W] in [0, 1]; no gradients.

        Model, one where something is learned from records: pictures and videos that prompts bring to learn from. They have the
        size and frames of the canvas. Its VAE's posterior mean, normalised; core keeps what is returned on disk.
        """

    @hookspec(firstresult=True)
    def log_prob(self, step: Step) -> Evaluation:  # type: ignore[empty-body]
        """Velocity, and where ``step`` has next latents their log-density, from ONE forward, differentiable.

        Model, one. ``sample`` must run the transformer through the same function.
        """

    @hookspec
    def prepare_reward(self, device: torch.device) -> None:
        """Read weights onto ``device``, the run's, or reach a server: what can fail before anything is drawn. Reward, optional.

        Called once in each process that computes rewards, before ``compute_reward``; ``build`` must read no weights.
        """

    @hookspec
    def compute_reward(self, samples: Samples) -> Mapping[str, Tensor | Future[Tensor]]:  # type: ignore[empty-body]
        """``{label: score [B]}``, higher is better. Every reward. A value may be a future.

        Groups are whole, unless the reward has ``pointwise = True``: it scores each sample by itself.
        A failure must raise: it is an error of the run, never a reward of zero.
        """

    @hookspec(firstresult=True)
    def plan(self, iteration: int, plan: SamplingPlan) -> SamplingPlan:  # type: ignore[empty-body]
        """The plan of this iteration: which steps are stochastic, which are recorded. Algorithm, optional."""

    @hookspec(firstresult=True)
    def update(self, experience: Experience, policy: Policy) -> Iterator[Loss]:  # type: ignore[empty-body]
        """Yield the losses of the samples in ``experience``, a piece of what one optimizer step learns from. Algorithm, one.

        Core back-propagates each loss before it asks for the next, so only one graph is alive; when it has asked for every
        piece it divides by the number of samples, clips and steps. A piece fits one forward, or is one whole group where the
        algorithm compares the members of a group. Pieces of as many samples yield as many losses, so that ranks keep step.
        """

    @hookspec(firstresult=True)
    def comparisons(self, experience: Experience) -> Iterable[Comparison]:  # type: ignore[empty-body]
        """What ``update`` will ask of ``policy.compare`` for ``experience``: steps with what is compared there, in order.

        Algorithm, optional. With it, kept weights are swapped in once for all pieces of an optimizer step; without, for each
        comparison.
        """

    @hookspec
    def prepare_tracker(self) -> None:
        """Ask whether a service would take what is sent: a UserError comes before weights are read. Tracker, optional.

        A service that does not answer is no error of the run: it may be there when the run has begun.
        """

    @hookspec
    def prompts_encoded(self, done: int, total: int) -> None:
        """So many of the ``total`` prompts that the cache lacks are encoded, on all ranks. Anyone; the leading rank alone.

        Comes as often as a prompt is done and at times between: before ``run_started``, and at the begin of iterations whose
        prompts are encoded as training comes to them (``prompts.encode_ahead``).
        """

    @hookspec
    def phase_progressed(self, phase: str, done: int, total: int) -> None:
        """``done`` of the ``total`` samples of a phase are done, on all ranks. Anyone; the leading rank alone.

        Comes when a phase begins, after every forward's worth of it, and so often that an implementation must be quick. Before
        ``run_started``: loading, encoding (of prompts). In an iteration: encoding (where more prompts are due), drawing and
        judging in turn, recomputing, checking (before the first update), learning (all epochs together), evaluating, saving.
        ``total`` is 0 where none can be told.
        """

    @hookspec
    def run_started(self, run: RunInfo, policy: Policy) -> None:
        """Weights are in place, nothing has been sampled. Anyone."""

    @hookspec
    def evaluation_finished(self, iteration: int, samples: Sequence[EvaluatedSample]) -> None:
        """The first ``evaluation.pictures`` held-out samples are drawn, scored and on disk. Anyone; the leading rank alone.

        Comes before the ``iteration_finished`` that carries the means over all of them.
        """

    @hookspec
    def iteration_finished(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """``iteration`` counts from 1; 0 carries the evaluation before training. Anyone.

        That comes once the first iteration's samples are drawn and checked.
        """

    @hookspec
    def checkpoint_saved(self, iteration: int, path: Path) -> None:
        """A checkpoint is whole under its final name. Anyone."""

    @hookspec
    def run_finished(self, run: RunInfo) -> None:
        """The last iteration is done and everything is on disk. Anyone."""

    @hookspec
    def run_failed(self, run: RunInfo, error: BaseException) -> None:
        """The run ends before its last iteration, by ``error``: it could not go on, or was asked to stop (Interrupted). Anyone.

        Called on each rank once the components are built, while ``error`` is on its way: close what is open, and ask no other
        rank, which may be gone. ``run_started`` may not have been called, where weights could not be read, or another's raised;
        and ``run_finished`` may have been, where another's raised. What an implementation raises is a warning, and keeps no
        other from being called. Who kills a process (SIGKILL, lack of memory) keeps it from all of this.
        """
