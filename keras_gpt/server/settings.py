"""`Settings`: where a server listens, and what it lets its clients ask for."""

from dataclasses import dataclass
from pathlib import Path

from keras_gpt.controls import MOST_NEW_TOKENS

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_COUNTS = ("num_slots", "max_tokens", "max_choices", "max_body")
_SECONDS = ("timeout", "grace")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where a server listens, and what it lets its clients ask for.

    Attributes:
        name: What requests call the model.
        host: The address to listen at.
        port: The port; 0 for any that is free.
        api_key: What requests must carry as `Authorization: Bearer KEY`. `None` for
            nothing.
        allowed_hosts: Names that requests may know the server by, in their `Host`
            header, besides this machine's own; `"*"` for any.
        num_slots: Answers that are written at the same time.
        max_waiting: Answers that wait for a slot; requests beyond are refused.
        max_tokens: Most tokens of an answer.
        max_choices: Most answers of a request, over all its prompts.
        max_body: Most bytes of a request.
        timeout: Seconds that a request may take.
        grace: Seconds that what is being answered has after SIGTERM.
        run: The folder of the training run that the model is from, whose losses and
            samples the page shows; or `None`.

    Raises:
        ValueError: One is out of its range.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    num_slots: int = 8
    max_waiting: int = 64
    max_tokens: int = 2048
    max_choices: int = 32
    max_body: int = 2**20
    timeout: float = 600.0
    grace: float = 30.0
    run: str | Path | None = None

    def __post_init__(self):
        if not self.name or "/" in self.name or ":" in self.name:
            raise ValueError(
                "`name` must be a name without a slash or a colon, as it is part of "
                f"addresses. Received: {self.name!r}."
            )
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("`api_key` must not be empty. Leave it out for none.")
        for name in _COUNTS:
            self._check(name, 1)
        for name in _SECONDS:
            self._check(name, 0)
        self._check("max_waiting", 0)
        self._check("max_tokens", 1, MOST_NEW_TOKENS)
        self._check("port", 0, 2**16 - 1)

    def _check(self, name, least, most=2**31 - 1):
        value = getattr(self, name)
        if not least <= value <= most:
            raise ValueError(
                f"`{name}` must be from {least} to {most}. Received: {value!r}."
            )

    @property
    def hosts(self) -> list[str]:
        """All names that requests may know the server by."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        own = () if host in ("", "0.0.0.0", "[::]") else (host,)
        return [*LOCAL_HOSTS, *own, *self.allowed_hosts]
