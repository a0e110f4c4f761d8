"""The ways a run ends early, each with one sentence for the person who started it."""


class UserError(Exception):
    """A mistake in what the user wrote: the command line prints the sentence, or several, a line each, and exits with 2."""

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, a mistake each."""
        return tuple(map(str, self.args))


class RunError(Exception):
    """Something is off with the training itself: the command line prints the sentence and exits with 1."""


class Interrupted(Exception):
    """The run was asked to stop, finished its iteration and saved it: the command line exits with 130."""


def to_plain(error: UserError | RunError) -> UserError | RunError:
    """The same without the class that a plugin may have made of it, which another process may not be able to make again."""
    return UserError(*error.sentences) if isinstance(error, UserError) else RunError(str(error))
