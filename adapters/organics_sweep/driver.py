"""Runs the tasks of a sweep: in this process, on all cores, or on a Dask cluster; the results are the same."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from organics_backends.native import processors

from .spec import Sweep, Task, compute
from .store import Store

Result = tuple[Task, dict[str, np.ndarray]]

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_RESTARTS = 5
_UNGUARDED = 78
"""Exit code of a worker that would run its script's sweep again."""


def run(
    spec: Sweep,
    path: Path | str,
    *,
    workers: int | None = None,
    client: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Compute what is missing in the store at ``path``.

    Parameters
    ----------
    spec : Sweep
    path : path
        Of the store; made if it is not there, resumed if it is.
    workers : int, optional
        Processes; by default one for every core that this process may use, 0 for none besides this one.
    client : dask.distributed.Client, optional
        Run on its cluster instead. Workers may come, go and die: their tasks
        are given to others.
    progress : callable, optional
        Called with the numbers of tasks done and of all, at the start and after each.

    Returns
    -------
    Store

    Raises
    ------
    RuntimeError
        Where a script calls this without ``if __name__ == "__main__":``, which its
        worker processes, that import it, need.
    TypeError, ValueError
        For workers that are no number of processes, before anything is written,
        and where the path holds another sweep.

    Examples
    --------
    >>> import tempfile
    >>> from organics_sweep import Sweep
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     said = []
    ...     store = run(
    ...         Sweep(n=3, deltas=(0.0,), norms=(1.0,), draws=4, block=2),
    ...         folder + "/sweep",
    ...         workers=0,
    ...         progress=lambda done, total: said.append((done, total)),
    ...     )
    >>> said
    [(0, 2), (1, 2), (2, 2)]
    """
    if workers != 0 and client is None and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(_UNGUARDED)  # a worker that imports the script which called this; told there, once
    if workers is not None and (isinstance(workers, bool) or not hasattr(workers, "__index__")):
        raise TypeError(f"workers must be a number of processes, 0 for none besides this one, got {workers!r}")
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be a number of processes, 0 for none besides this one, got {workers}")
    store = Store(path, spec)
    missing = store.missing()
    total = sum(1 for _ in spec.tasks())
    done = total - len(missing)
    if progress is not None:
        progress(done, total)
    if not missing:
        return store
    if client is not None:
        results = _on_cluster(spec, missing, client)
    elif workers == 0:
        results = ((task, compute(spec, task)) for task in missing)
    else:
        results = _on_processes(spec, missing, workers or processors())
    for task, values in results:
        store.write(task, values)
        done += 1
        if progress is not None:
            progress(done, total)
    return store


def _labelled(spec: Sweep, task: Task) -> Result:
    return task, compute(spec, task)


def _nothing() -> None:
    """What a process does that only shows whether the script can be imported."""


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for tasks for ever: end it."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_processes(spec: Sweep, tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Fresh processes with one thread each; where one dies the pool starts anew with what is left."""
    left = dict.fromkeys(tasks)
    restarts = 0
    saved = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # inherited by the processes; they are the parallelism
    context = multiprocessing.get_context("spawn")
    try:
        first = context.Process(target=_nothing)
        first.start()
        first.join()
        if first.exitcode == _UNGUARDED:
            raise RuntimeError(
                'a sweep on several processes must be started under `if __name__ == "__main__":`, because they import '
                "the script that starts it; or give workers=0"
            )
        while left:
            pool = ProcessPoolExecutor(min(workers, len(left)), mp_context=context, initializer=_end_with_parent)
            try:
                pending = {pool.submit(_labelled, spec, task) for task in left}
                while pending:
                    finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in finished:
                        task, values = future.result()
                        del left[task]
                        yield task, values
            except BrokenProcessPool:
                restarts += 1
                if restarts > _RESTARTS:
                    raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def dask_distributed() -> Any:
    """The package ``distributed``, or an error that says where it comes from."""
    try:
        import distributed
    except ImportError as error:
        raise ImportError(
            "a cluster needs dask.distributed; install it with: pip install 'organics-core[dask]'"
        ) from error
    return distributed


def _on_cluster(spec: Sweep, tasks: Iterable[Task], client: Any) -> Iterator[Result]:
    as_completed = dask_distributed().as_completed
    futures = [client.submit(_labelled, spec, task, pure=False, retries=_RESTARTS) for task in tasks]
    for future, result in as_completed(futures, with_results=True):
        yield result
        future.release()
