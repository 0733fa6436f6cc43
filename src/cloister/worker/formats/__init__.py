"""Paths that are put into chat completions and back, or whose answers are made anew.

The API inside the seal is wider than what engines agree on: OpenAI's responses, Anthropic's
messages, embeddings, ranking, tokens. What is asked there is translated here, for every engine
alike, into the one path that all of them have (docs/adr/0008-one-translation.md). Pure
functions and state machines: nothing here does input or output, or knows who asks.

An engine is not trusted to answer in any shape: a wrong one causes ValueError, and no more.
"""
