"""In a forked child the ops run in one thread: OpenMP waits for ever for the others, which only the parent has.

Decides when torch's own products, which the ops call, learn of it: when an op is called there first, so that children
that call none keep their threads. The kernels find out by themselves (csrc/common/forked.h).
"""

import os

import torch

_is_new_child = False


def _mark_child() -> None:
    global _is_new_child
    _is_new_child = True


# C code that forks an interpreter and goes on in it has to call PyOS_AfterFork_Child, which comes here too.
if hasattr(os, "register_at_fork"):  # where there is no fork there is nothing to do
    os.register_at_fork(after_in_child=_mark_child)


def one_thread_in_forked_child() -> None:
    """To be called before an op's first work; sets torch's number of threads, once in each forked child."""
    global _is_new_child
    if not torch.compiler.is_compiling() and _is_new_child:  # this order: what is traced needs no guard on the child
        _is_new_child = False
        torch.set_num_threads(1)
