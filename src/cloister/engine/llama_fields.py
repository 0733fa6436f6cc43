"""The fields that llama.cpp's server reads, path by path.

It ignores every other field without a word, so the worker refuses them. Found by giving each
field a value of a wrong type and reading the server's own names (xllamacpp 2026.10.11549); the
embedded engine's tests ask again.
"""

# ruff: noqa: SIM905 - tables of names are easier to read without quotation marks

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    HEALTH,
    MODELS,
    TOKENIZE,
    Paths,
)

_SAMPLING: Final = frozenset(
    """
    adaptive_decay adaptive_target dry_allowed_length dry_base dry_multiplier dry_penalty_last_n
    dry_sequence_breakers dynatemp_exponent dynatemp_range frequency_penalty grammar ignore_eos
    json_schema logit_bias min_keep min_p mirostat mirostat_eta mirostat_tau n_probs
    post_sampling_probs presence_penalty repeat_last_n repeat_penalty samplers seed stop
    t_max_predict_ms temperature top_k top_n_sigma top_p typical_p xtc_probability xtc_threshold
    """.split()
)
_GENERATION: Final = _SAMPLING | frozenset(
    """
    cache_prompt logprobs max_tokens model n n_cmpl n_discard n_indent n_keep n_predict
    response_fields return_progress return_tokens stream stream_options timings_per_token
    """.split()
)
_CHAT: Final = _GENERATION | frozenset(
    """
    add_generation_prompt chat_template_kwargs continue_final_message max_completion_tokens
    messages parallel_tool_calls reasoning_budget_tokens reasoning_effort reasoning_format
    response_format tool_choice tools top_logprobs
    """.split()
)

NEEDS: Final = {
    "parallel_tool_calls": "tools",
    "reasoning_budget_tokens": "think",
    "reasoning_effort": "reasoning_effort",
    "tool_choice": "tools",
    "tools": "tools",
}
"""Fields that a chat template has to heed, and the word (`cloister.engine.gguf.TEMPLATE_WORDS`)
that then stands in it. With another template the server takes them and forgets them."""


def paths_of(template_words: Collection[str]) -> Paths:
    """The paths, with the fields that a model with these words in its template heeds."""
    lacking = {name for name, word in NEEDS.items() if word not in template_words}
    return {**PATHS, CHAT_COMPLETIONS: _CHAT - lacking}


PATHS: Final[Paths] = {
    CHAT_COMPLETIONS: _CHAT,
    COMPLETIONS: _GENERATION | {"prompt"},
    TOKENIZE: frozenset({"add_special_tokens", "model", "prompt"}),
    MODELS: frozenset(),
    HEALTH: frozenset(),
}
EMBEDDING_PATHS: Final[Paths] = {EMBEDDINGS: frozenset({"encoding_format", "input", "model"})}
