"""The stand-in's knowledge of tasks. Replace this package together with `taskchat.tasks` (docs/your-own-tools.md)."""

from dev.standin_model.script import Domain

from .sentences import understand

domain = Domain(
    understand=understand,
    help=(
        "I am the stand-in for a real model and understand plain sentences only, such as: add buy milk and call mum; "
        "what is left?; finish the milk; rename 2 to call dad; describe 2 as after lunch; delete 3."
    ),
    reads=frozenset({"list_tasks"}),
    key="task_id",
)
