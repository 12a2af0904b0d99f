"""A language model behind one call: an OpenAI-compatible endpoint, and its answers kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.small_files import json_of, parsed_json

# Statuses that pass: too slow, too many requests; so do all from 500 on.
_PASSING = (408, 425, 429)
# A server may ask for more patience than is good for anyone.
_LONGEST_WAIT_S = 60.0
# Bytes; a sentence takes some hundreds.
_LONGEST_ANSWER = 2**22


@runtime_checkable
class LanguageModel(Protocol):
    """What answers prompts."""

    @property
    def name(self) -> str:
        """Says which model; answers of different names are kept apart."""
        ...

    def complete(self, prompt: str) -> str:
        """The answer to a prompt."""
        ...


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    # A redirect would take the key to another server.
    def redirect_request(self, *_: Any) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A server that speaks the chat-completions protocol of OpenAI.

    Attributes:
      url: its base, such as http://localhost:8000/v1; '/chat/completions' is added.
      name: of the model.
      key_variable: the environment variable that holds the key; none is sent where it is unset.
      attempts: how often a prompt is sent before it is given up.
      first_wait_s: after the first failure; doubled after each further one.
      timeout_s: for one answer.
    """

    url: str
    name: str
    key_variable: str = "OPENAI_API_KEY"
    attempts: int = 5
    first_wait_s: float = 1.0
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            whole = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            whole = False
        if not self.url.startswith(("http://", "https://")) or not whole:
            raise InputError(
                f"url {self.url!r}: must start with http:// or https:// and name a host, such as "
                "http://localhost:8000/v1."
            )
        if not self.name or not self.name.isprintable():
            raise InputError(
                f"model {self.name!r}: must have a name in printable characters; give one that the "
                "endpoint serves."
            )
        if self.attempts < 1:
            raise InputError(f"attempts {self.attempts}: must be at least 1.")

    def complete(self, prompt: str) -> str:
        """The answer to a prompt.

        Raises:
          InputError: the server refuses, or fails in every attempt; or the key is none.
        """
        headers = self._headers()
        wait_s = self.first_wait_s
        failure = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(min(wait_s, _LONGEST_WAIT_S))
                wait_s *= 2
            try:
                return self._ask(prompt, headers)
            except urllib.error.HTTPError as error:
                failure = f"status {error.code}: {_excerpt(error)}"
                if error.code < 500 and error.code not in _PASSING:
                    raise InputError(
                        f"{self.url}: refuses ({failure}); check the url, the model {self.name!r} "
                        f"and the key in {self.key_variable}."
                    ) from error
                asked_s = error.headers.get("Retry-After", "")
                wait_s = max(wait_s, float(asked_s) if asked_s.isdecimal() else 0.0)
            except (OSError, http.client.HTTPException) as error:
                failure = str(getattr(error, "reason", "") or error) or type(error).__name__
            except (ValueError, KeyError, IndexError, TypeError) as error:
                failure = f"no chat completion ({type(error).__name__})"
        raise InputError(
            f"{self.url}: no answer in {self.attempts} attempts ({failure}); see to the server and "
            "start again: the answers so far are kept."
        )

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            if not (key.isascii() and key.isprintable()):
                raise InputError(
                    f"{self.key_variable}: holds characters that no header may; set it to the key "
                    "alone."
                )
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _ask(self, prompt: str, headers: dict[str, str]) -> str:
        asked = {"model": self.name, "messages": [{"role": "user", "content": prompt}]}
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=json.dumps(asked).encode(),
            headers=headers,
        )
        opener = urllib.request.build_opener(_NoRedirect)
        until = time.monotonic() + self.timeout_s
        with opener.open(request, timeout=self.timeout_s) as response:
            text = parsed_json(_body(response, until))["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError("content is no text")
        # Halves of characters, which JSON may hold and a file may not, are a ValueError here.
        text.encode()
        return text


@dataclasses.dataclass(frozen=True)
class Cached:
    """A model that is asked each prompt once; its answers lie in a folder, a file each.

    Attributes:
      model: what is asked.
      folder: of the answers; made when missing.
    """

    model: LanguageModel
    folder: Path

    @property
    def name(self) -> str:
        return self.model.name

    def complete(self, prompt: str) -> str:
        """The answer to a prompt, from the folder where it is there."""
        identity = {"model": self.name, "prompt": prompt}
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        path = self.folder / digest[:2] / f"{digest}.json"
        try:
            kept = json_of(path)
            if {"model": kept["model"], "prompt": kept["prompt"]} == identity:
                return str(kept["answer"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # Not there, or cut short by a full disk: asked again.
        answer = self.model.complete(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{digest}.{uuid.uuid4().hex}")
        text = json.dumps({**identity, "answer": answer}, ensure_ascii=False, indent=1)
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(path)
        return answer


def _body(response: http.client.HTTPResponse, until: float) -> bytes:
    """What a server answers; one that never comes to an end is as good as silent."""
    held = bytearray()
    while block := response.read1(2**16):
        held += block
        if len(held) > _LONGEST_ANSWER:
            raise ValueError(f"more than {_LONGEST_ANSWER:,} bytes")
        if time.monotonic() > until:
            raise TimeoutError("the answer does not end")
    return bytes(held)


def _excerpt(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read(200).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        text = ""
    return " ".join(text.split()) or str(error.reason)
