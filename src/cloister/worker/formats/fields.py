"""Which fields of a body mean something; the others are refused, by name where we know them.

A field is either handed to the engine or refused, never dropped. What an engine would ignore is
known from its table (`Engine.paths`); without one the engine is handed everything.
"""

# ruff: noqa: SIM905 - tables of names are easier to read without quotation marks

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from cloister.engine.protocol import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS, RERANK, TOKENIZE
from cloister.worker import problems
from cloister.worker.problems import RefusedError

UNSUPPORTED: Final = "unsupported_parameter"

INERT: Final = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "user"})
"""They say something about who asks or what for, and ask for nothing."""

ASKS_NOTHING: Final[Mapping[str, tuple[object, ...]]] = {
    "background": (False,),
    "best_of": (1,),
    "echo": (False,),
    "modalities": (["text"],),
    "service_tier": ("auto", "default", "standard_only"),
    "store": (False,),
    "truncation": ("disabled",),
}
"""Fields that every worker lacks, and the values that say the same as leaving them out."""

_COMMON: Final = """
    frequency_penalty logit_bias logprobs max_tokens model n presence_penalty seed stop stream
    stream_options temperature top_p user
"""
DOCUMENTED: Final[Mapping[str, frozenset[str]]] = {
    CHAT_COMPLETIONS: frozenset(
        f"""
        {_COMMON} audio function_call functions max_completion_tokens messages metadata modalities
        moderation parallel_tool_calls prediction prompt_cache_key prompt_cache_options
        prompt_cache_retention reasoning_effort response_format safety_identifier service_tier
        store tool_choice tools top_logprobs verbosity web_search_options
        """.split()
    ),
    COMPLETIONS: frozenset(f"{_COMMON} best_of echo prompt suffix".split()),
    EMBEDDINGS: frozenset({"dimensions", "encoding_format", "input", "model", "user"}),
    TOKENIZE: frozenset(
        """
        add_generation_prompt add_special_tokens chat_template chat_template_kwargs messages model
        prompt return_token_strs tools
        """.split()
    ),
    RERANK: frozenset({"documents", "model", "query", "return_documents", "top_n"}),
}
"""Names in the published references, which a refusal may repeat: nobody's secret is among them."""


def unsupported(name: str | None) -> RefusedError:
    """Refuse a field, by its name if that is a documented one."""
    which = f"`{name}` is" if name else "There is a field that is"
    return RefusedError(
        problems.bad_request(
            f"{which} not supported here, and would be ignored.", code=UNSUPPORTED, param=name
        )
    )


def check_fields(
    document: Mapping[str, Any], known: Collection[str] | None, *, documented: Collection[str]
) -> None:
    """RefusedError for a field that nobody would heed. None for `known` lets all others pass."""
    for name, value in document.items():
        if value is None or name in INERT:
            continue
        if asks_nothing(name, value):
            continue
        if (name == "store" and name in documented) or (known is not None and name not in known):
            raise unsupported(name if name in documented else None)


def asks_nothing(name: str, value: object) -> bool:
    """Whether the field has the value that it has when it is left out."""
    # 1 and True are equal, but do not mean the same.
    return any(
        value == one and isinstance(value, bool) == isinstance(one, bool)
        for one in ASKS_NOTHING.get(name, ())
    )


def wrong(name: str, what: str) -> RefusedError:
    """Refuse the value of a documented field; `what` is a sentence of ours about it."""
    return RefusedError(problems.bad_request(what, code="bad_value", param=name))


def expect(value: object, kind: type[Any], name: str) -> Any:
    """`value` if it is of `kind` (a boolean is no number), else RefusedError naming the field."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise wrong(name, f"`{name}` is not of the right type.")
    return value
