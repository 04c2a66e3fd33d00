"""The stand-in's knowledge of tasks. Replace this package together with `taskchat.tasks` (docs/your-own-tools.md)."""

from dev.standin_model.script import Domain, Examples

from .sentences import understand

domain = Domain(
    understand=understand,
    help=(
        "I am the stand-in for a real model and understand plain sentences only, such as: add buy milk and call mum; "
        "what is left?; finish the milk; rename 2 to call dad; describe 2 as after lunch; delete 3."
    ),
    reads=frozenset({"list_tasks"}),
    key="task_id",
    examples=Examples(
        add="Add buy milk",
        added="buy milk",
        show="What is left?",
        more=("Mark buy milk as done",),
        calls=(
            ("add_task", {"title": "call mum"}),
            ("list_tasks", {"status": "pending"}),
            ("update_task", {"task_id": 1, "title": "call dad"}),
            ("complete_task", {"task_id": 1}),
            ("delete_task", {"task_id": 1}),
        ),
        table="task",
        text="title",
        scopes=("tasks:read", "tasks:write"),
    ),
)
