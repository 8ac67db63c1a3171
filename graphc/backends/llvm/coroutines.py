"""Coroutines in LLVM text, split into the functions that they become.

Only those passes of LLVM run that this takes, and that drop what is not reached.
Imports: target, object_code.
"""

from __future__ import annotations

from graphc.backends.llvm.object_code import refused
from graphc.backends.llvm.target import Target, binding, compile_lock


def split_coroutines(text: str, target: Target) -> str:
    """The module with each `presplitcoroutine` function as a state machine.

    Raises CompileError if it is wrong.
    """
    llvm = binding()
    with compile_lock:
        try:
            module = llvm.parse_assembly(text)
            module.verify()
            module.triple = target.triple
            module.data_layout = target.layout
        except RuntimeError as error:
            raise refused(text, str(error)) from None
        options = llvm.create_pipeline_tuning_options(speed_level=0)
        builder = llvm.create_pass_builder(target.machine, options)
        builder.getModulePassManager().run(module, builder)
        # each of the functions still has all the code, behind conditions that are constant now
        passes = llvm.create_new_module_pass_manager()
        passes.add_sccp_pass()
        passes.add_simplify_cfg_pass()
        passes.run(module, builder)
        return str(module)
