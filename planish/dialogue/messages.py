"""A conversation: the system message, then turns of user and assistant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(kw_only=True)
class Messages:
    """The messages of a conversation. turns: all but the system message, in their order."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def all(self) -> list[Message]:
        """What the chat template is given."""
        first = [] if self.system is None else [message("system", self.system)]
        return [*first, *self.turns]

    def add(self, role: str, text: str) -> None:
        self.turns.append(message(role, text))

    @property
    def last_role(self) -> str | None:
        return self.turns[-1]["role"] if self.turns else None

    def undo(self) -> list[Message]:
        """Remove the last message of a user and what follows it; returns what was removed."""
        users = [i for i, turn in enumerate(self.turns) if turn["role"] == "user"]
        start = users[-1] if users else 0
        removed, self.turns = self.turns[start:], self.turns[:start]
        return removed

    def drop_oldest(self) -> list[Message]:
        """Remove the first turn, up to the next message of a user; returns what was removed.

        The last message of a user stays, since it is the one to answer.
        """
        users = [i for i, turn in enumerate(self.turns) if turn["role"] == "user"]
        later = [i for i in users if i > 0]
        if not later:
            return []
        removed, self.turns = self.turns[: later[0]], self.turns[later[0] :]
        return removed


def message(role: str, text: str) -> Message:
    return {"role": role, "content": text}
