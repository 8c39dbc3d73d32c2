"""What goes wrong for reasons that the person at the keyboard can mend. The command line shows these without a
traceback, and scripts tell how a run ended by its exit status: 0 done, 1 an error, and these."""

EXIT_INTERRUPTED = 75  # sysexits' EX_TEMPFAIL: saved, start the same command again to go on
EXIT_HUNG = 76  # the watchdog ended it; the same command goes on from the last complete checkpoint


class UserError(Exception):
    """Names the setting or the file, what was got, what is allowed, and the way out."""


class ConfigError(UserError, ValueError):
    """A config that cannot run, in words for the person who wrote it."""


class Interrupted(Exception):
    """A signal ended a run after its state was saved; the same command goes on from there."""
