"""Generator of the dialogues that the demo model is trained on.

Everything the model ever reads is written here: facts and phrasings in ``data/*.toml``, the
ways of varying and combining them in the modules beside it. Nothing is taken from any other
text. All randomness comes from one seeded generator, so a seed fixes every byte.
"""
