"""Models and their versions in the serving double, by TF Serving's rules.

Version folders are those with integer names. A version that appears is loaded and
warmed up before one that it replaces is unloaded; an unload waits for the calls under
way. A version that failed to load stays END and isn't tried again (the server tries
five more times, a minute apart).
"""

import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.serving.capi import Model, StatusError
from tests.serving.double_batching import Batcher
from tests.serving.double_predict import run_predict
from tests.serving.protos import prediction_log_pb2

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
_MOST_WARMUP_RECORDS = 1000


@dataclass
class Version:
    """A version of a model and what became of it."""

    number: int
    path: Path
    state: str = "START"
    error: StatusError | None = None
    model: Model | None = None
    batcher: Batcher | None = None
    calls: int = 0


@dataclass
class _Served:
    config: object  # a ModelConfig
    versions: dict[int, Version] = field(default_factory=dict)


class Models:
    """All models of the server.

    Args:
        configs: A `ModelConfig` for each.
        batching: `BatchingParameters`, or `None` for no batching.
        warmup: Whether warm-up requests are replayed.
        log: Takes a line of text.
    """

    def __init__(self, configs, *, batching=None, warmup=True, log=lambda line: None):
        self._models = {config.name: _Served(config) for config in configs}
        self._batching = batching
        self._warmup = warmup
        self._log = log
        self._changed = threading.Condition()

    def poll(self) -> None:
        """Bring what is served up to what is on disk. One thread at a time."""
        for name, served in self._models.items():
            wanted = _wanted_versions(served.config)
            if wanted is None:
                self._log(f"Could not find base path for servable {name}")
                continue
            known = served.versions
            for number in sorted(wanted):
                if number not in known or (
                    known[number].state == "END" and known[number].error is None
                ):
                    self._load(name, served, Version(number, wanted[number]))
            ready = [n for n in wanted if known[n].state == "AVAILABLE"]
            for version in list(known.values()):
                if version.number not in wanted and (ready or not wanted):
                    self._unload(name, version)

    def is_ready(self) -> bool:
        """Whether each model has the versions that its configuration names."""
        return all(
            served.versions and all(v.state == "AVAILABLE" for v in self._live(served))
            for served in self._models.values()
        )

    def errors(self) -> list[str]:
        """What went wrong with the versions that failed."""
        return [
            f"{{name: {name} version: {version.number}}}: {version.error}"
            for name, served in self._models.items()
            for version in served.versions.values()
            if version.error
        ]

    def versions(self, name: str) -> list[Version]:
        """All versions of a model that were seen."""
        return list(self._models[name].versions.values())

    @contextmanager
    def use(self, spec) -> Iterator[Version]:
        """The version that a ModelSpec asks for, which stays loaded meanwhile.

        Raises:
            StatusError: There is none.
        """
        with self._changed:
            version = self._find(spec)
            version.calls += 1
        try:
            yield version
        finally:
            with self._changed:
                version.calls -= 1
                self._changed.notify_all()

    def status(self, spec) -> list[Version]:
        """The states of one version or of all, which a label doesn't change."""
        with self._changed:
            served = self._models.get(spec.name)
            versions = served.versions if served else {}
            if spec.HasField("version"):
                number = spec.version.value
                if number not in versions:
                    raise StatusError(
                        "NOT_FOUND",
                        f"Could not find version {number} of model {spec.name}",
                    )
                return [versions[number]]
            if not versions:
                raise StatusError(
                    "NOT_FOUND", f"Could not find any versions of model {spec.name}"
                )
            return [versions[number] for number in sorted(versions)]

    def _live(self, served: _Served) -> list[Version]:
        return [v for v in served.versions.values() if v.state != "END" or v.error]

    def _find(self, spec) -> Version:
        if not spec.name:
            raise StatusError("INVALID_ARGUMENT", "ModelSpec has no name specified.")
        served = self._models.get(spec.name)
        available = {
            number: version
            for number, version in (served.versions if served else {}).items()
            if version.state == "AVAILABLE"
        }
        choice = spec.WhichOneof("version_choice")
        if choice is None:
            if available:
                return available[max(available)]
            asked = f"Latest({spec.name})"
        else:
            number = spec.version.value
            if choice == "version_label":
                labels = served.config.version_labels if served else {}
                if spec.version_label not in labels:
                    raise StatusError(
                        "INVALID_ARGUMENT",
                        f"Unrecognized servable version label: {spec.version_label}",
                    )
                number = labels[spec.version_label]
            if number in available:
                return available[number]
            asked = f"Specific({spec.name}, {number})"
        raise StatusError("NOT_FOUND", f"Servable not found for request: {asked}")

    def _set(self, name: str, version: Version, state: str) -> None:
        with self._changed:
            version.state = state
        self._log(f"{{name: {name} version: {version.number}}} {state}")

    def _load(self, name: str, served: _Served, version: Version) -> None:
        with self._changed:
            served.versions[version.number] = version
        self._set(name, version, "LOADING")
        try:
            version.model = Model(version.path)
            if self._batching is not None:
                version.batcher = Batcher(version.model, self._batching)
            if self._warmup:
                for log in read_warmup(version.path):
                    if log.WhichOneof("log_type") == "predict_log":
                        run_predict(version, log.predict_log.request)
        except StatusError as error:
            version.error = error
            self._free(version)
            self._set(name, version, "END")
            self._log(str(error))
            return
        self._set(name, version, "AVAILABLE")

    def _unload(self, name: str, version: Version) -> None:
        if version.state != "AVAILABLE":
            return
        self._set(name, version, "UNLOADING")
        with self._changed:
            self._changed.wait_for(lambda: version.calls == 0)
        self._free(version)
        self._set(name, version, "END")

    def _free(self, version: Version) -> None:
        if version.batcher is not None:
            version.batcher.close()
        if version.model is not None:
            version.model.close()
        version.model = version.batcher = None


def _wanted_versions(config) -> dict[int, Path] | None:
    """Folders by version that the policy wants, `None` without a base path."""
    base = Path(config.base_path)
    if not base.is_dir():
        return None
    found = {
        int(child.name): child
        for child in base.iterdir()
        if re.fullmatch(r"[+-]?\d+", child.name)
    }
    policy = config.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return found
    if choice == "specific":
        return {n: found[n] for n in policy.specific.versions if n in found}
    newest = sorted(found)[-max(1, policy.latest.num_versions) :]
    return {number: found[number] for number in newest}


def read_warmup(path: Path) -> Iterator:
    """The `PredictionLog`s that a version folder carries.

    Raises:
        StatusError: The file isn't made of them.
    """
    try:
        data = (path / WARMUP_FILE).read_bytes()
    except FileNotFoundError:
        return
    position = count = 0
    while position < len(data):
        # TFRecord: length, its checksum, the record, its checksum. The checksums are
        # Castagnoli's, which the standard library lacks.
        header = data[position : position + 12]
        (length,) = struct.unpack("<Q", header[:8].ljust(8, b"\xff"))
        record = data[position + 12 : position + 12 + length]
        position += 16 + length
        if position > len(data):
            raise StatusError(
                "DATA_LOSS",
                "truncated record. Please verify your warmup data is in TFRecord "
                "format.",
            )
        count += 1
        if count > _MOST_WARMUP_RECORDS:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Number of warmup records exceeds the maximum ({_MOST_WARMUP_RECORDS})"
                f" at {path / WARMUP_FILE}",
            )
        log = prediction_log_pb2.PredictionLog()
        try:
            log.ParseFromString(record)
        except Exception as error:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Failed to parse warmup record: {record!r} from {path / WARMUP_FILE}",
            ) from error
        yield log
