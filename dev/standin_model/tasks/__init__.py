"""The stand-in's knowledge of tasks. Replace this package together with `taskchat.tasks` (docs/your-own-tools.md)."""

from dev.standin_model.script import Domain, Examples

from .sentences import understand

domain = Domain(
    understand=understand,
    help=(
        "I am the stand-in for a real model and understand plain English sentences only, such as: add buy milk and "
        "call mum; remind me tomorrow at 9 to pay the rent; what is left?; what is due this week?; I bought the milk; "
        "move the call to Friday; rename 2 to call dad; delete 3; undo that."
    ),
    reads=frozenset({"list_tasks"}),
    key="task_id",
    examples=Examples(
        add="Add buy milk",
        added="buy milk",
        show="What is left?",
        more=("Add call mum on Monday at 9", "Move call mum to Friday and tell me what is left", "Oops, undo that"),
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
