"""A clock for sessions, which decide by it how much the next step computes."""


class Clock:
    """Moves on by `step` seconds whenever it is read: slow steps make small chunks."""

    def __init__(self, step: float):
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now
