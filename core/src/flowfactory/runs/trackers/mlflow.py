"""MLflow."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from flowfactory.errors import UserError
from flowfactory.hooks.evaluated_sample import EvaluatedSample
from flowfactory.runs.trackers.config import TrackerConfig
from flowfactory.runs.trackers.identity import recall, remember
from flowfactory.runs.trackers.samples import flatten
from flowfactory.types import RunInfo

ENDS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
AT_ONCE, LONGEST = 100, 500
"""What a server takes in one call of the parameters, and letters of one."""


class MLflowConfig(TrackerConfig):
    """A run of MLflow: metrics, the config as parameters, held-out samples as artifacts."""

    called: ClassVar[str] = "mlflow"
    modules: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic")
    secrets: ClassVar[str] = "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"

    experiment: str = Field("flowfactory", min_length=1, description="the experiment that the run is put in")
    run_name: str | None = Field(None, description="what the run is called; the run directory's name when left out")
    uri: str | None = Field(
        None,
        examples=["http://mlflow.example.org:5000", "sqlite:///mlflow.db"],
        description="the server or database; left out: MLFLOW_TRACKING_URI, or mlflow.db in the current folder",
    )

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str | None) -> str | None:
        if uri is not None and urlsplit(uri).password is not None:
            raise ValueError(f"has a password in it, and a config is saved with the run for others to read; {cls.secrets}")
        return uri

    def service(self) -> MLflow:
        return MLflow(self)


class MLflow:
    """A run there."""

    def __init__(self, config: MLflowConfig) -> None:
        self._config = config
        self._client: Any = None
        self._id = ""

    def _connect(self) -> Any:
        if self._client is None:
            self._client = import_module("mlflow").MlflowClient(self._config.uri)
        return self._client

    def check(self) -> None:
        """UserError: the address is none, or the server refuses who asks."""
        try:
            self._connect().search_experiments(max_results=1)
        except Exception as error:
            told = " ".join(str(error).split())
            if any(word in told for word in ("401", "403", "Unauthorized")):
                raise UserError(f"tracker 'mlflow' is refused ({told[:300]}); {MLflowConfig.secrets}") from error
            if type(error).__name__ in ("UnsupportedModelRegistryStoreURIException", "UnsupportedTrackingStoreURIException"):
                raise UserError(f"tracker 'mlflow': {told[:300]}; write the uri of a server or a database") from error

    def start(self, run: RunInfo) -> None:
        """Open the run, or go on with it."""
        client, place = self._connect(), f"mlflow:{self._config.experiment}"
        known = recall(run, place)
        if known is not None:
            client.update_run(known, status="RUNNING")
            self._id = known
            return
        found = client.get_experiment_by_name(self._config.experiment)
        number = found.experiment_id if found else client.create_experiment(self._config.experiment)
        made = client.create_run(number, run_name=self._config.run_name or run.directory.resolve().name)
        self._id = made.info.run_id
        remember(run, place, self._id)
        entities: Any = import_module("mlflow.entities")
        told = flatten(run.config.model_dump(mode="json"))
        parameters = [entities.Param(_sound(key), str(value)[:LONGEST]) for key, value in told.items()]
        for start in range(0, len(parameters), AT_ONCE):
            client.log_batch(self._id, params=parameters[start : start + AT_ONCE])

    def log(self, iteration: int, metrics: Mapping[str, float], samples: Sequence[EvaluatedSample]) -> None:
        """A metric each at this step, and ``heldout/<iteration>/`` among the artifacts."""
        entities: Any = import_module("mlflow.entities")
        now = round(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[entities.Metric(_sound(k), v, now, iteration) for k, v in metrics.items()])
        if not samples:
            return
        folder = f"heldout/{iteration:06d}"
        for sample in samples:
            self._client.log_artifact(self._id, str(sample.path), folder)
        told = [{"file": sample.path.name, "prompt": sample.prompt, "scores": dict(sample.scores)} for sample in samples]
        self._client.log_text(self._id, json.dumps(told, indent=1, ensure_ascii=False), f"{folder}/samples.json")

    def end(self, how: str) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._id, ENDS[how])


def _sound(name: str) -> str:
    """``name`` of the letters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]
