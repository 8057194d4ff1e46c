"""Names that are made, and names that weights, memories and blocks cannot have.

In: a name. Out: why it is taken, or nothing; a name for one more use. A parameter is called as in
the spec, `W_q.weight`, so a name must be one that an attribute of `torch.nn.Module` can have.
"""

from __future__ import annotations

import keyword
from collections.abc import Container

# what `torch.nn.Module` has itself, the deprecated and inherited included
MODULE = frozenset(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda
    double dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter
    get_submodule half ipu load_state_dict modules mtia named_buffers named_children
    named_modules named_parameters parameters register_backward_hook register_buffer
    register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter
    register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state
    set_submodule share_memory state_dict to to_empty train training type xpu zero_grad _apply
    _backward_hooks _backward_pre_hooks _buffers _call_impl _compiled_call_impl _forward_hooks
    _forward_hooks_always_called _forward_hooks_with_kwargs _forward_pre_hooks
    _forward_pre_hooks_with_kwargs _get_backward_hooks _get_name _is_full_backward_hook
    _load_from_state_dict _load_state_dict_post_hooks _load_state_dict_pre_hooks
    _maybe_warn_non_full_backward_hook _modules _named_members _non_persistent_buffers_set
    _parameters _register_load_state_dict_pre_hook _register_state_dict_hook
    _replicate_for_data_parallel _save_to_state_dict _slow_forward _state_dict_hooks
    _state_dict_pre_hooks _version _wrapped_call_impl _get_backward_pre_hooks
    """.split()  # noqa: SIM905
)
# what emitted modules add
EMITTED = frozenset({"initial_state", "repeat", "reset_parameters", "step"})
# what those of models add that learn from the task while they read
ONLINE = frozenset(
    """
    ahead arrive_at ask_window begin_window first_state is_deep learn_here learn_window learners
    move_window movers online_levels read_ahead read_piece read_step read_window whole_window
    window_lengths window_loss
    """.split()  # noqa: SIM905
)


def taken(name: str) -> str | None:
    """Say why a name cannot be an attribute of an emitted module.

    >>> taken("W_q"), taken("lambda"), taken("step")
    (None, 'a word of Python', 'emitted modules have a `step` of their own')
    """
    if keyword.iskeyword(name):
        return "a word of Python"
    if name.startswith("__"):
        return "names that begin with `__` are Python's own"
    if name in MODULE or name in EMITTED or name in ONLINE:
        return f"emitted modules have a `{name}` of their own"
    return None


def numbered(name: str, uses: dict[str, int], others: Container[str], first: int = 0) -> str:
    """Name one more use: `name`, `name_1`, `name_2`, ..., none of them one of `others`.

    >>> uses = {}
    >>> [numbered("mixer", uses, {"mixer", "mixer_1"}) for _ in range(3)]
    ['mixer', 'mixer_2', 'mixer_3']
    """
    number = uses.get(name, first)
    while number and f"{name}_{number}" in others:
        number += 1
    uses[name] = number + 1
    return f"{name}_{number}" if number else name
