"""The options of the server: its address, who may use it, and its limits."""

import ipaddress
from dataclasses import dataclass

from mindgpt.config.errors import UserError


@dataclass(frozen=True)
class ServerOptions:
    """See `command.py` for what each means."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_batch: int = 8
    max_queue: int = 64
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
    max_texts: int = 64
    max_logprobs: int = 20
    max_body: int = 2 * 1024 * 1024
    max_connections: int = 512
    timeout: float = 300.0
    read_timeout: float = 20.0
    keep_alive: float = 60.0
    grace: float = 30.0

    def check(self) -> None:
        """Raise `UserError` for options that do not go together."""
        if self.api_key is not None and (not self.api_key.strip() or not self.api_key.isascii()):
            raise UserError(
                "--api_key: must be text of ASCII characters that is not empty; MINDGPT_API_KEY sets it, too"
            )
        if self.api_key is None and not is_loopback(self.host):
            raise UserError(
                f"--host {self.host}: other machines can reach this address, so a key is required: set MINDGPT_API_KEY "
                "(or --api_key KEY), or serve on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
