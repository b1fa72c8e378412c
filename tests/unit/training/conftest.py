"""Runs that several processes share."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def joint_runs() -> ModuleType:
    """The module beside this file, which torchrun starts too."""
    spec = importlib.util.spec_from_file_location("joint_runs", Path(__file__).with_name("joint_runs.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def in_two_processes() -> Callable[..., None]:
    """Runs `target(rank, *args)` in two forks of this process, set up as torchrun would."""

    def start(rank: int, port: int, target: Callable[..., None], *args: Any) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        target(rank, *args)

    def run(target: Callable[..., None], *args: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = torch.multiprocessing.get_context("fork")
        processes = [context.Process(target=start, args=(r, port, target, *args), daemon=True) for r in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]

    return run
