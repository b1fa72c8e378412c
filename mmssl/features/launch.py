"""Start the ranks of an extraction as jobs, on this machine or as an array of Slurm jobs, through submitit.

A rank is the same command with its `--rank`; ranks share nothing but the output folder.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.errors import ConfigError, MmsslError
from mmssl.files import is_url

_LINES = 8


def launch(
    words: Sequence[str], folder: str | Path, world_size: int, launcher: str, options: Mapping[str, Any]
) -> list[str]:
    """Run all ranks and wait for them.

    Args:
        words: arguments of `mmssl extract` without rank and world size.
        folder: of the store; logs go to a folder beside it, its name with ".jobs" added; for a URL, to one in
            the current folder.
        world_size: number of ranks.
        launcher: "local" (processes of this machine) or "slurm".
        options: of submitit's executor, such as slurm_partition, gpus_per_node, timeout_min.

    Returns:
        The last line that each rank printed.

    Raises:
        ConfigError: submitit is missing or knows no such option.
        MmsslError: a rank failed; the end of its log is in the message. The others have done their share.
    """
    if world_size < 1:
        raise ConfigError(f"world_size must be 1 or more, got {world_size}.")
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("Launching jobs needs the package submitit: pip install submitit.") from error
    # beside a folder; of a URL, here under its last name
    logs = Path(f"{Path(folder).name if is_url(folder) else folder}.jobs")
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=launcher)
        executor.update_parameters(**{"name": "mmssl-extract", "timeout_min": 24 * 60, **options})
    except (NameError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"submitit refuses the launcher {launcher!r} with {dict(options)}: {error}") from error
    # a command, not a function: nothing of this process is pickled for the jobs
    command = [sys.executable, "-m", "mmssl", "extract"]
    with executor.batch():
        jobs = [
            executor.submit(
                submitit.helpers.CommandFunction(
                    [*command, *_with_rank(words, rank, world_size)], verbose=False, cwd=Path.cwd()
                )
            )
            for rank in range(world_size)
        ]
    lines, failed = [], []
    for rank, job in enumerate(jobs):
        try:
            output = str(job.result()).strip().splitlines()
            lines.append(f"rank {rank}: {output[-1] if output else 'done'}")
        except Exception as error:  # submitit raises its own and the job's errors alike
            tail = "\n    ".join(str(error).strip().splitlines()[-_LINES:])
            failed.append(f"rank {rank}:\n    {tail}")
    if failed:
        listed = "\n  ".join(failed)
        raise MmsslError(
            f"{len(failed)} of {world_size} ranks failed (logs in {logs}):\n  {listed}\n"
            f"What was finished is in the store; run the same command again to go on."
        )
    return lines


def _with_rank(words: Sequence[str], rank: int, world_size: int) -> list[str]:
    """Rank and world size before --upstream, whose values go on to the end."""
    place = list(words).index("--upstream")
    return [*words[:place], f"--rank={rank}", f"--world-size={world_size}", *words[place:]]
