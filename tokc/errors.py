"""Every error that tokc raises on purpose.

TokcError                 the command cannot go on; exit code 1
  ImportRefused           the model's files are missing, damaged or of an unknown kind
  PassFailed              a pass raised, or its result differs from its input by more than it allows
  VerifyFailed            a program or artifact breaks its own rules
  TargetRefused           the target cannot run this program, or is not known
  ArtifactRefused         the artifact is damaged, of another schema, or for another machine
  RequestRefused          a request to the runtime is out of range
  EngineStopped           the engine failed or was closed while a request ran
  UnknownOption           an option's value is not one that it accepts; exit code 2
  GateNotMet              a stated limit was not met; exit code 3
"""


class TokcError(Exception):
    """Say what is wrong, where, and what to do about it."""

    def __init__(self, problem: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """Render as the command line prints it, without the leading `error: `."""
        lines = [self.problem]
        if self.where is not None:
            lines.append(f"  at: {self.where}")
        if self.hint is not None:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class ImportRefused(TokcError):
    """Report a model whose files are missing, damaged or of an unknown kind."""


class PassFailed(TokcError):
    """Report a pass that raised, or that changed the answers by more than it allows."""


class VerifyFailed(TokcError):
    """Report a program or artifact that breaks its own rules."""


class TargetRefused(TokcError):
    """Report a target that is unknown or cannot run the program."""


class ArtifactRefused(TokcError):
    """Report an artifact that is damaged, of another schema, or for another machine."""


class RequestRefused(TokcError):
    """Report a request to the runtime that is out of range."""


class EngineStopped(TokcError):
    """Report an engine that failed or was closed while a request ran."""


class UnknownOption(TokcError):
    """Report an option's value that is not one that the option accepts."""


class GateNotMet(TokcError):
    """Report a stated limit that was not met."""
