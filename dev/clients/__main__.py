"""Hold whole conversations with the clients of AG-UI and of the AI SDK, on a database of their own (`make clients`)."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dev import backend, client, node, processes
from dev import standin_model as model
from dev.client import UnreachableError
from dev.processes import StartupError
from dev.proof import ProofError

HERE: Final = Path(__file__).parent
LIMIT_SECONDS: Final = 180
LIMITS: Final = {"TURN_BURST": "10000", "TURNS_PER_MINUTE": "10000", "DATA_BURST": "10000"}
"""So high that the turns of this one user stay below them."""


@dataclass(frozen=True)
class Run:
    """A script, the client's package, and the package of the Node.js that runs it: none for the locked one."""

    script: str
    package: str
    runtime: str | None = None

    def command(self, home: Path) -> list[str | Path]:
        """Return the command. npm has installed the packages in `home`."""
        runtime = home / "node_modules" / self.runtime / "bin" / "node" if self.runtime else node.program()
        return [runtime, home / self.script, self.package]


RUNS: Final = (
    Run("ag_ui.mjs", "@ag-ui/client"),
    Run("ai_sdk.mjs", "ai7"),
    Run("ai_sdk.mjs", "ai6", "node20"),
)
"""Version 7 of the AI SDK wants Node.js 22 or later. Version 6 runs on 20 too."""


def main() -> int:
    """Run every client. The exit code is 1 when one saw something that it did not expect."""
    print("Running the protocols' own clients (the first run downloads them)", flush=True)
    try:
        run(node.install(HERE))
    except (ProofError, StartupError, UnreachableError, subprocess.TimeoutExpired) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def run(home: Path) -> None:
    """Start everything, and run each client. Raises ProofError and StartupError."""
    for script in HERE.glob("*.mjs"):  # Node.js looks for packages beside the script
        shutil.copyfile(script, home / script.name)
    port, progress = processes.free_port(backend.HOST), backend.Progress(sys.stdout)
    with model.running(backend.HOST, 0) as stand_in:
        os.environ.update(LIMITS | backend.STAND_IN | {"OPENAI_BASE_URL": stand_in.base_url})
        with backend.running(port, progress, reload=False) as server:
            for each in RUNS:
                _try(each, home, server.url, stand_in.base_url)
                stand_in.reset()


def _try(each: Run, home: Path, url: str, model_url: str) -> None:
    token = client.token(url)
    known = {
        "TASKCHAT_PATH": f"{url}/api/{token['user_id']}",
        "TASKCHAT_TOKEN": token["token"],
        "MODEL_CONTROL": f"{model_url.removesuffix('/v1')}/control",
    }
    done = node.run(each.command(home), LIMIT_SECONDS, known=known)
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        raise ProofError(f"{each.package}: {done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
