"""Every way for something of a user to come in."""

from commands import COMMANDS_KINDS
from inputs import KINDS
from long_commands import LONG_KINDS

ALL_KINDS = (*KINDS, *COMMANDS_KINDS, *LONG_KINDS)
