"""What a server allows, apart from the model."""

from __future__ import annotations

from dataclasses import dataclass

from fptq_onnx.errors import FptqError


@dataclass(frozen=True)
class ServerSettings:
    """Limits and access.

    Attributes:
        max_running: requests in a batch.
        max_waiting: requests that wait for a place in it; more are refused with 429.
        max_body: bytes of a request.
        timeout: seconds for a request, waiting included.
        drain: seconds that running requests have to end once the server is told to.
        max_length: tokens of a prompt and its answer together; None for the model's context.
        api_key: asked for on /v1; None for none.
    """

    max_running: int = 16
    max_waiting: int = 128
    max_body: int = 1 << 20
    timeout: float = 600.0
    drain: float = 30.0
    max_length: int | None = None
    api_key: str | None = None

    def __post_init__(self) -> None:
        """Refuse what means nothing.

        Raises:
            FptqError: a number out of its range, or an empty key.
        """
        least = {"max_running": 1, "max_waiting": 0, "max_body": 1, "drain": 0, "max_length": 2}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                raise FptqError(f"{name.replace('_', ' ')} must be at least {lowest}, got {value}")
        if self.drain == float("inf"):
            raise FptqError("drain must be a number of seconds, got inf")
        if not self.timeout > 0:
            raise FptqError(f"the timeout must be above 0 seconds, got {self.timeout}")
        if self.api_key is not None and not self.api_key.strip():
            raise FptqError(
                "the API key is empty and would protect nothing: give one, or to serve without "
                "leave out --api-key and unset FPTQ_API_KEY"
            )
