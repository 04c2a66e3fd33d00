"""Name the domain that the stand-in understands. This is the only line to change for another one."""

from dev.standin_model.tasks import domain as domain
